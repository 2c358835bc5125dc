// Cross-entropy launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or
// allocate. loss[r] = logsumexp(logits[r, :valid_vocab]) - logits[r, target[r]], in nats, fp32 sums. The
// maximum and the sum come from one pass (online softmax, Milakov & Gimelshein 2018). An aligned row
// (pointer, stride and cols multiples of 16 bytes) is read once and stays in the shared memory of one block,
// or of the cluster of blocks that share it, up to 925,000 bf16 columns; others are read twice, by scalar
// accesses. The vocabulary-parallel pair does the same for a row whose columns are split over ranks (Shoeybi
// et al. 2019, Megatron-LM), of which each launch reads this rank's once: the statistics are exchanged
// between the two, three floats a row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct CrossEntropyArgs {
  DType dtype;   // of logits: F32 or BF16
  void* logits;  // [rows, cols], rows row_stride apart; overwritten with the gradient where there is one
  const void* targets;  // [rows]; what one outside [first_id, first_id + valid_vocab) does is said below
  DType targets_dtype;  // I32 or I64
  float* out;           // see the launchers; not used by vocab_parallel_gradient
  int64_t rows;
  int64_t cols;
  int64_t row_stride;   // >= cols, in elements
  int64_t valid_vocab;  // columns from here to cols are padding: left out of the sum, gradient 0
  int64_t ignore_index;
  float scale;                         // of the gradient
  int64_t first_id = 0;                // the vocabulary id of column 0
  const float* log_sum_exp = nullptr;  // [rows], of all ranks' columns: vocab_parallel_gradient only
};
// The first two need valid_vocab > 0, give 0 in ignored rows and NaN for a target that is not a valid column.
// out = loss [rows], logits = scale * (softmax - onehot).
void cross_entropy_forward_backward(const CrossEntropyArgs& args, cudaStream_t stream);
// out = -loss; logits are only read.
void token_logprobs(const CrossEntropyArgs& args, cudaStream_t stream);
// out [rows, 3] = largest logit (-inf when there is none above -inf), sum of exp(logit - largest), logit of
// the target or 0 when it is not among the columns or ignored. Logits are only read.
void vocab_parallel_statistics(const CrossEntropyArgs& args, cudaStream_t stream);
// logits = scale * (exp(logits - log_sum_exp) - onehot); 0 in ignored rows. A target of another rank has no
// onehot here; a log_sum_exp of NaN makes the valid columns of its row NaN.
void vocab_parallel_gradient(const CrossEntropyArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
