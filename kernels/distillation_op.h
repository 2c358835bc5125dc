// The loss of knowledge distillation on a chunk of rows: (1 - kd_alpha) x cross entropy of the target +
// kd_alpha x temperature^2 x divergence of the teacher's and the student's distributions
// (kernels/distillation.h says which and where they come from). Sums in fp32. Thread-safe. Letters: N rows, V
// columns of the student's logits, U of the teacher's.
#pragma once

#include <functional>

#include "kernels/op_support.h"

namespace hearth::kernels {

enum class DivergenceKind { ForwardKl, ReverseKl, Jsd };

struct DistillationLoss {
  DivergenceKind divergence = DivergenceKind::ForwardKl;
  double beta = 0.5;  // of Jsd, in (0, 1)
  double temperature = 1.0;
  double kd_alpha = 0.5;  // in [0, 1]
};

// Columns [0, valid) of the student's logits are the vocabulary ids [first_id, first_id + valid); the first
// `common` of them are in the teacher's vocabulary too. The rest is padding.
struct DistillationShare {
  int64_t first_id = 0, valid = 0, common = 0;
};

// Statistics of this rank, [N, K] fp32 -> those of all ranks, [T, N, K] in rank order. One rank:
// unsqueeze(0).
using GatherStatistics = std::function<at::Tensor(const at::Tensor&)>;

struct DistillationResult {
  at::Tensor cross_entropy_N;  // fp32, unweighted; 0 in ignored rows
  at::Tensor divergence_N;     // fp32, unweighted and without temperature^2; 0 in ignored rows
};

// Overwrites student_NV with the gradient of the sum over rows of the loss; 0 in rows whose target is -100
// and in padding. Logits: fp32 or bf16, last dimension contiguous. targets: int32 or int64 [N], ids of the
// whole vocabulary, or -100. `gather` is called twice, by all ranks that share the vocabulary. The CPU has
// the plain path alone (ATen operations in fp32).
DistillationResult distillation_op(at::Tensor& student_NV, const at::Tensor& teacher_NU,
                                   const at::Tensor& targets_N, const DistillationShare& share,
                                   const DistillationLoss& loss, const GatherStatistics& gather,
                                   KernelPath path = KernelPath::Fused);

// The same with what is kept of a teacher's distribution: its top_k log-probabilities, and the mass of all
// other ids as one further outcome. The divergence is the forward KL over these top_k + 1 outcomes (Peng et
// al. 2024), which is the whole vocabulary's where top_k is the vocabulary.
struct KeptTeacher {
  at::Tensor ids_NK;       // int64, ids of the whole vocabulary
  at::Tensor logprobs_NK;  // fp32, at the temperature of the loss
  at::Tensor tail_mass_N;  // fp32
};
DistillationResult kept_distillation_op(at::Tensor& student_NV, const KeptTeacher& teacher,
                                        const at::Tensor& targets_N, const DistillationShare& share,
                                        const DistillationLoss& loss, const GatherStatistics& gather,
                                        KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
