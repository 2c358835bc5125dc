// RMSNorm on tensors: y = w * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps) over the last dimension (Zhang &
// Sennrich 2019, eq. 4). Sums in fp32; one rounding to the activation dtype at the store (transformers rounds
// twice in bf16, the same in fp32). Forward and backward without autograd; the model owns the graph.
// Thread-safe. Deterministic. Letters: N rows, H heads, D width.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

struct RmsNormForward {
  at::Tensor y;     // shape and dtype of x, contiguous
  at::Tensor rstd;  // fp32 [N] or [N * H], kept for backward
};

// x: [N, D], or [N, H, D] for the norm per head of q and k, which may be a view into the fused qkv output
// (last dimension contiguous, other strides free). w: [D], dtype of x. Throws Error{Usage} for anything else.
RmsNormForward rms_norm_forward_op(const at::Tensor& x, const at::Tensor& w_D, double eps,
                                   KernelPath path = KernelPath::Fused);

struct RmsNormResidualForward {
  at::Tensor sum;  // x + residual, rounded to their dtype; contiguous
  at::Tensor y, rstd;
};

// The residual addition and the norm of its rounded result in one pass: bit for bit rms_norm_forward_op of
// `sum`. residual: shape and dtype of x; strided like it.
RmsNormResidualForward rms_norm_residual_forward_op(const at::Tensor& x, const at::Tensor& residual,
                                                    const at::Tensor& w_D, double eps,
                                                    KernelPath path = KernelPath::Fused);

// Returns dx (contiguous, shape and dtype of x), plus `residual_grad` where it is defined (same shape and
// dtype; the gradient that bypasses the norm, so that no separate addition is needed). Adds the weight
// gradient to dw_accum_D (fp32 or bf16 [D]); an undefined dw_accum_D means that it is not wanted. dy may be
// strided like x.
at::Tensor rms_norm_backward_op(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w_D,
                                const at::Tensor& rstd_N, at::Tensor& dw_accum_D,
                                const at::Tensor& residual_grad = {}, KernelPath path = KernelPath::Fused);

struct RmsNormBackward {
  at::Tensor dx;
  at::Tensor y;  // the forward's output, its very bits
};

// The same, and y again in the same pass: for the weight gradient of the linear behind the norm, where y was
// not kept.
RmsNormBackward rms_norm_backward_recompute_op(const at::Tensor& dy, const at::Tensor& x,
                                               const at::Tensor& w_D, const at::Tensor& rstd_N,
                                               at::Tensor& dw_accum_D, const at::Tensor& residual_grad = {},
                                               KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
