// SwiGLU on the fused gate-and-up projection (Shazeer 2020): h = silu(gate) * up, gu = [gate | up] along the
// last dimension. fp32 arithmetic, one rounding at the store. Thread-safe. Letters: N rows, F intermediate
// size.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

// gu: [N, 2F], contiguous. Returns h [N, F].
at::Tensor swiglu_forward_op(const at::Tensor& gu_N2F, KernelPath path = KernelPath::Fused);

// Returns d(gu) [N, 2F], gate half first, from dh [N, F] (contiguous) and the forward's input.
at::Tensor swiglu_backward_op(const at::Tensor& dh_NF, const at::Tensor& gu_N2F,
                              KernelPath path = KernelPath::Fused);

// The same into dgu_N2F and, where it is defined, the forward's output (its very bits) into h_NF: recompute
// without a second reading of gu. Both contiguous, dtype of the inputs. dgu may be gu and h may be dh (in
// place, for inputs that nothing reads afterwards); other overlap is not allowed.
void swiglu_backward_out_op(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, at::Tensor& dgu_N2F,
                            at::Tensor h_NF = {}, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
