// Cross entropy over the vocabulary, in nats, per row; sums in fp32. Normalisation is the caller's: Hearth
// divides by the global count of valid tokens, never by a local mean. Thread-safe. Letters: N rows, V columns
// of the logits, T shares of a vocabulary that is split over ranks.
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

// Vocabulary-parallel cross entropy (Shoeybi et al. 2019, Megatron-LM, section 3): no rank ever holds a whole
// row of logits. Each rank takes the statistics of its columns, the ranks gather them (three floats a row),
// and each turns its own columns into their gradient. One gather takes the place of Megatron-LM's three
// all-reduces (maximum, target logit, sum).
//
// One rank's share. Columns [0, valid_columns) are the vocabulary ids [first_id, first_id + valid_columns);
// further columns are padding. Returns fp32 [N, 3]: largest logit, sum of exp(logit - largest), logit of the
// target if it is on this rank, else 0. With no column above -inf, as when valid_columns is 0, the first two
// are -inf and 0. Ignored rows: statistics as usual, target 0. logits and targets as above, except that any
// target is accepted.
at::Tensor vocab_parallel_statistics_op(const at::Tensor& logits_NV, const at::Tensor& targets_N,
                                        int64_t first_id, int64_t valid_columns,
                                        int64_t ignore_index = kIgnoreIndex,
                                        KernelPath path = KernelPath::Fused);

// fp32 [N] each. A target that is on no rank, that is outside [0, vocab_size) and not ignore_index: NaN in
// both, on either device, so that neither the loss nor the gradient made from it passes for a good one.
struct VocabParallelLoss {
  at::Tensor loss_N;         // 0 in ignored rows
  at::Tensor log_sum_exp_N;  // over all shares
};
// Joins the statistics of all shares, stats_TN3 in share order. Tensor arithmetic in an order that only the
// shape fixes, so ranks with the same statistics get the same bits.
VocabParallelLoss vocab_parallel_loss_op(const at::Tensor& stats_TN3, const at::Tensor& targets_N,
                                         int64_t vocab_size, int64_t ignore_index = kIgnoreIndex);

// Overwrites the share's logits with scale * (softmax - onehot), softmax = exp(logits - log_sum_exp); 0 in
// ignored rows and in padding columns. Rounding of log_sum_exp to fp32 makes the probabilities of a row wrong
// by a common factor within 1 +- 2^-24 |log_sum_exp|.
void vocab_parallel_gradient_op(at::Tensor& logits_NV, const at::Tensor& targets_N,
                                const at::Tensor& log_sum_exp_N, int64_t first_id, int64_t valid_columns,
                                double scale, int64_t ignore_index = kIgnoreIndex,
                                KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
