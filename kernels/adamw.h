// AdamW and sum-of-squares launchers: no torch, no __global__. Thread-safe for disjoint buffers; enqueue on
// `stream`, never synchronize or allocate. Formula and order of operations: adamw_op.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/adamw_scalars.h"

namespace hearth::kernels {

// All buffers have `count` elements, contiguous, no overlap. 16-byte accesses where every pointer allows.
struct AdamWArgs {
  void* master;      // updated; F32 or BF16
  const void* grad;  // F32 or BF16
  void* exp_avg;     // updated; F32 or BF16
  void* exp_avg_sq;  // updated; F32 or BF16
  DType master_dtype, grad_dtype, exp_avg_dtype, exp_avg_sq_dtype;
  uint64_t rounding_seed;   // of this step, for the states in bf16
  void* model_param;        // null, or bf16: receives the new master
  const float* grad_scale;  // null, or one further factor on the device
  const int64_t*
      no_decay;  // [num_no_decay, 2] on the device: sorted disjoint ranges [begin, end) without decay
  int64_t num_no_decay;
  int64_t count;
  AdamWScalars scalars;
};
void adamw(const AdamWArgs& args, cudaStream_t stream);

// *out = sum of x^2 in fp64, over fixed blocks in a fixed order. Non-finite exactly when an element is.
struct SumOfSquares {
  const void* x;
  DType dtype;  // of x: F32 or BF16
  int64_t count;
  double* workspace;  // sum_of_squares_workspace_doubles(count)
  double* out;        // one element on the device, overwritten
};
int64_t sum_of_squares_workspace_doubles(int64_t count);
void sum_of_squares(const SumOfSquares& args, cudaStream_t stream);

}  // namespace hearth::kernels
