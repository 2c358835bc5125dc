// SwiGLU on the fused gate-and-up projection (Shazeer 2020): h = silu(gate) * up, gu = [gate | up] along the
// last dimension. fp32 arithmetic, one rounding at the store. Thread-safe. Letters: N rows, F intermediate
// size.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

// gu: [N, 2F], contiguous. Returns h [N, F].
at::Tensor swiglu_forward_op(const at::Tensor& gu_N2F, KernelPath path = KernelPath::Fused);

// Returns d(gu) [N, 2F], gate half first, from dh [N, F] (contiguous) and the forward's input; h is rebuilt.
at::Tensor swiglu_backward_op(const at::Tensor& dh_NF, const at::Tensor& gu_N2F,
                              KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
