// Embedding launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or
// allocate.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct EmbeddingForwardArgs {
  DType dtype;        // F32 or BF16
  const void* table;  // [vocab, width], contiguous
  const void* ids;    // [tokens]; one outside [0, vocab) gives a row of NaN
  DType ids_dtype;    // I32 or I64
  void* out;          // [tokens, width], contiguous
  int64_t tokens, vocab, width;
};
void embedding_forward(const EmbeddingForwardArgs& args, cudaStream_t stream);

// Sorting makes the rows of one id neighbours, so that one block owns each table row: no atomics, and the sum
// runs in token order.
struct EmbeddingBackwardArgs {
  DType dtype;                // of dy
  const void* dy;             // [tokens, width], contiguous
  const int64_t* sorted_ids;  // [tokens], ascending; those outside [0, vocab) are skipped
  const int64_t* tokens_of;   // [tokens]: the token of each sorted id, ascending within an id (a stable sort)
  float* dtable_accum;        // [vocab, width]: added to
  int64_t tokens, vocab, width;
};
void embedding_backward(const EmbeddingBackwardArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
