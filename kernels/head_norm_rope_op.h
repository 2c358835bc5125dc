// RMSNorm of every head of q and k and then the rotary embedding (models with qk_norm), as one operation: on
// CUDA in one pass for the usual head widths, elsewhere composed of rms_norm and rope in fp32. One rounding,
// at the store, so a little more accurate than the two after each other. Thread-safe. Deterministic. Letters:
// N tokens, H query heads, K key heads, W head_dim, P positions.
//
// What a model saves for backward: q and k as they were before the norm (so `*_out` are new tensors, or the
// section of another one), and rstd; nothing is cloned.
#pragma once

#include "kernels/op_support.h"
#include "kernels/rope_op.h"

namespace hearth::kernels {

struct HeadNormRopeInput {
  at::Tensor q_NHW, k_NKW;            // before the norm; last dimension contiguous, other strides free
  at::Tensor q_weight_W, k_weight_W;  // dtype of q and k
  RopeTable table;
  at::Tensor positions_N;  // as for rope_op
};
struct HeadNormRopeRstd {
  at::Tensor q, k;  // fp32 [N * H] and [N * K]
};

// q_out, k_out: shapes and dtype of q and k, strides free. Each may be its input, where no backward follows.
HeadNormRopeRstd head_norm_rope_forward_op(const HeadNormRopeInput& input, double eps, at::Tensor& q_out,
                                           at::Tensor& k_out, KernelPath path = KernelPath::Fused);

// dq, dk: gradients of the forward's outputs. Writes the gradients of its inputs to dq_out and dk_out, each
// of which may be dq or dk (in place), and adds those of the weights to dq_weight and dk_weight (fp32 or bf16
// [W]; undefined: not wanted).
void head_norm_rope_backward_op(const at::Tensor& dq_NHW, const at::Tensor& dk_NKW,
                                const HeadNormRopeInput& input, const HeadNormRopeRstd& rstd,
                                at::Tensor& dq_weight_W, at::Tensor& dk_weight_W, at::Tensor& dq_out,
                                at::Tensor& dk_out, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
