// Token embedding: a gather of rows, and its gradient added to an fp32 or bf16 buffer (sums in fp32, rounded
// once a call). Deterministic: each row's
// contributions are added in token order, on both devices. Thread-safe. Letters: N tokens, V vocabulary rows,
// R rows of a share of them, D width.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

// table: [V, D] fp32 or bf16, contiguous; ids: int32 or int64 [N]. Returns [N, D]. An id outside [0, V):
// Error{Usage} on the CPU, a row of NaN on CUDA, where nothing may wait for the device.
at::Tensor embedding_forward_op(const at::Tensor& table_VD, const at::Tensor& ids_N,
                                KernelPath path = KernelPath::Fused);

// dtable_accum[ids[n]] += dy[n]; dtable_accum: [V, D], contiguous; dy: [N, D], contiguous. Ids outside
// [0, V) as above, but skipped on CUDA.
void embedding_backward_op(const at::Tensor& dy_ND, const at::Tensor& ids_N, at::Tensor& dtable_accum_VD,
                           KernelPath path = KernelPath::Fused);

// Vocabulary-parallel form (Shoeybi et al. 2019, Megatron-LM, section 3): the table is one rank's share, the
// ids [first_id, first_id + R), and R may be 0. Any other id, of whatever value, gives a row of zeros, so
// that the sum over the shares is the embedding; that an id is in the vocabulary at all is the caller's to
// check.
at::Tensor embedding_range_forward_op(const at::Tensor& table_RD, const at::Tensor& ids_N, int64_t first_id,
                                      KernelPath path = KernelPath::Fused);

// dtable_accum[ids[n] - first_id] += dy[n] where that row exists; other ids add nothing. dtable_accum:
// [R, D], contiguous; dy: [N, D], contiguous, the same on every rank.
void embedding_range_backward_op(const at::Tensor& dy_ND, const at::Tensor& ids_N, int64_t first_id,
                                 at::Tensor& dtable_accum_RD, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
