// One AdamW step (Loshchilov & Hutter 2019, Algorithm 2) over flat buffers, computed in fp32 with the
// operations and their order of torch.optim.AdamW; states kept in bf16 are rounded at random, right on
// average; and the sum of squares that clipping needs. Deterministic; on the CPU the bits do not depend on
// the number of threads. Thread-safe for disjoint buffers.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

struct AdamWStep {
  at::Tensor master;           // fp32 or bf16 [n], contiguous, updated in place
  at::Tensor grad;             // fp32 or bf16 [n], read only
  at::Tensor exp_avg;          // fp32 or bf16 [n], updated in place
  at::Tensor exp_avg_sq;       // fp32 or bf16 [n], updated in place
  uint64_t rounding_seed = 0;  // of the states in bf16: another one for every buffer and step
  at::Tensor model_param;      // optional bf16 [n]: receives the new master, rounded to nearest even
  // Optional int64 [R, 2], on the CPU for CPU buffers and on the device otherwise: sorted, disjoint element
  // ranges [begin, end) of the buffers that take no weight decay (norm weights, biases).
  at::Tensor no_decay_ranges_R2;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;         // 1 at the first step: bias corrections are 1 - beta^step
  double grad_scale = 1.0;  // the gradient is multiplied by it first (the clip coefficient)
  // Optional fp32 [1] on the device of the buffers: a further factor, for a coefficient that the host has not
  // seen.
  at::Tensor grad_scale_tensor;
};
void adamw_step_op(const AdamWStep& step, KernelPath path = KernelPath::Fused);

// Sum of squares of an fp32 or bf16 tensor (contiguous) as an fp64 [1] tensor on its device; nothing waits
// for the device. Squares are summed in fp64, where squares of finite fp32 values cannot overflow: the sum is
// finite exactly when every element is, so it is the finite check too. Blocks and their order are fixed by
// the size alone.
at::Tensor sum_of_squares_op(const at::Tensor& x, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
