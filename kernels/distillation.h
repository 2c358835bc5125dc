// Knowledge-distillation launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never
// synchronize or allocate. A row holds the student's and the teacher's logits of one position; either may be
// a share of a vocabulary that is split over ranks. Three launches with a small exchange between them:
// statistics (so that every rank knows the normalisers), sums (the divergence of a row, which the gradient of
// some of them needs), gradient. The logits of both are read three times and nothing of their size is made
// (chunked distillation as in Liger kernels, Hsu et al. 2024; vocabulary-parallel as Shoeybi et al. 2019).
// u = logits / temperature, s = softmax(u_student), t = softmax(u_teacher), over columns [0, common):
//   forward KL  D = sum t (log t - log s)
//               dD/du = s - t                                (Hinton et al. 2015)
//   reverse KL  D = sum s (log s - log t)
//               dD/du = s (log s - log t - D)                (Gu et al. 2024)
//   JSD(beta)   D = beta KL(t|m) + (1 - beta) KL(s|m), m = beta t + (1 - beta) s, 0 < beta < 1
//               dD/du = (1 - beta) s (log s/m - KL(s|m))     (Agarwal et al. 2024, eq. 1)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

// Given: the teacher is not here as logits; the gradient of a column is s times a factor of the row.
enum class Divergence { ForwardKl, ReverseKl, Jsd, Given };

struct DistillationArgs {
  DType dtype;    // of both logits: F32 or BF16
  void* student;  // [rows, student_stride], columns [0, valid); the gradient launch overwrites [0, cols)
  const void* teacher;                                 // [rows, teacher_stride], columns [0, common)
  const void* targets;                                 // [rows]
  DType targets_dtype;                                 // I32 or I64
  int64_t rows, cols, student_stride, teacher_stride;  // elements
  int64_t valid;     // student columns that are in the vocabulary; the rest is padding
  int64_t common;    // columns that student and teacher share, at most `valid`
  int64_t first_id;  // vocabulary id of column 0
  int64_t ignore_index;
  float inverse_temperature;
  Divergence divergence;
  float beta;                                   // of Jsd
  const float* inputs;                          // sums: [rows, 2]; gradient: [rows, 4]; see the launchers
  float* out;                                   // statistics: [rows, 6]; sums: [rows, 2]
  float cross_entropy_scale, divergence_scale;  // of the gradient
};

// out[r] = largest student logit, sum exp(z - largest) over [0, valid), target's logit or 0 where it is not
// among the columns, sum exp((z - largest) / T) over [0, common), largest teacher logit, its sum at T.
// Without a column: -inf and 0.
void distillation_statistics(const DistillationArgs& args, cudaStream_t stream);
// inputs[r] = logsumexp of the student's and the teacher's z / T over all ranks' common columns. out[r] =
// this rank's part of: forward KL {D, 0}; reverse KL {0, D}; Jsd {KL(t|m), KL(s|m)}. 0 in ignored rows.
void distillation_sums(const DistillationArgs& args, cudaStream_t stream);
// inputs[r] = the two logsumexps, the second of the sums over all ranks, and the logsumexp of z over all
// ranks' valid columns (Given: the second is the row's factor). student = cross_entropy_scale (softmax(z) -
// onehot) + divergence_scale dD/du; 0 in ignored rows and padding. A NaN in `inputs` makes the valid columns
// of its row NaN.
void distillation_gradient(const DistillationArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
