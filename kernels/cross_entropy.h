// Cross-entropy launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or
// allocate. loss[r] = logsumexp(logits[r, :valid_vocab]) - logits[r, target[r]], in nats, fp32 sums. One
// block per row; the maximum and the sum come from one pass (online softmax, Milakov & Gimelshein 2018).
// Aligned rows of at most 49152 bf16 or 24576 fp32 columns stay in registers between the passes; wider ones
// are read twice, the second time mostly from the L2 cache.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct CrossEntropyArgs {
  DType dtype;   // of logits: F32 or BF16
  void* logits;  // [rows, cols], rows row_stride apart; overwritten with the gradient by the first launcher
  const void* targets;  // [rows]; one outside [0, valid_vocab) that is not ignore_index gives NaN
  DType targets_dtype;  // I32 or I64
  float* out;           // [rows]: loss (first launcher) or log p(target) (second); 0 in ignored rows
  int64_t rows;
  int64_t cols;
  int64_t row_stride;   // >= cols, in elements
  int64_t valid_vocab;  // columns from here to cols are padding: left out of the sum, gradient 0
  int64_t ignore_index;
  float scale;  // of the gradient
};
// out = loss, logits = scale * (softmax - onehot).
void cross_entropy_forward_backward(const CrossEntropyArgs& args, cudaStream_t stream);
// out = -loss; logits are only read.
void token_logprobs(const CrossEntropyArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
