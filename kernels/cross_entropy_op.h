// Cross entropy over the vocabulary, in nats, per row; sums in fp32. Normalisation is the caller's: Hearth
// divides by the global count of valid tokens, never by a local mean. Thread-safe. Letters: N rows, V columns
// of the logits.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

constexpr int64_t kIgnoreIndex = -100;  // of PyTorch and transformers

// loss[n] = logsumexp(logits[n, :valid_vocab]) - logits[n, target[n]], fp32 [N]; 0 where target is
// ignore_index. Overwrites logits with scale * d(loss[n]) / d(logits): softmax - onehot, scaled; 0 in ignored
// rows and in the padded columns valid_vocab..V. logits: fp32 or bf16 [N, V], last dimension contiguous, row
// stride may exceed V. targets: int32 or int64 [N]. A target outside [0, valid_vocab) that is not
// ignore_index: Error{Usage} on the CPU; NaN in loss and row on CUDA, where nothing may wait for the device.
at::Tensor cross_entropy_forward_backward_op(at::Tensor& logits_NV, const at::Tensor& targets_N, double scale,
                                             int64_t valid_vocab, int64_t ignore_index = kIgnoreIndex,
                                             KernelPath path = KernelPath::Fused);

// log p(target), fp32 [N]; logits are left alone. 0 where target is ignore_index. For evaluation.
at::Tensor token_logprobs_op(const at::Tensor& logits_NV, const at::Tensor& targets_N, int64_t valid_vocab,
                             int64_t ignore_index = kIgnoreIndex, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
