// Embedding launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or
// allocate.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct EmbeddingForwardArgs {
  DType dtype;        // F32 or BF16
  const void* table;  // [vocab, width], contiguous: the ids [first_id, first_id + vocab)
  const void* ids;    // [tokens]
  DType ids_dtype;    // I32 or I64
  void* out;          // [tokens, width], contiguous
  int64_t tokens, vocab, width, first_id;
  float absent;  // what fills the row of an id that is not in the table
};
void embedding_forward(const EmbeddingForwardArgs& args, cudaStream_t stream);

// Sorting makes the rows of one id neighbours, so that one block owns each table row: no atomics, and the sum
// runs in token order.
struct EmbeddingBackwardArgs {
  DType dtype;                // of dy
  const void* dy;             // [tokens, width], contiguous
  const int64_t* sorted_ids;  // [tokens], ascending; those that are not in the table are skipped
  const int64_t* tokens_of;   // [tokens]: the token of each sorted id, ascending within an id (a stable sort)
  void* dtable_accum;         // [vocab, width]: added to; the ids [first_id, first_id + vocab)
  DType accum_dtype;          // of dtable_accum: F32 or BF16; sums in fp32, rounded once
  int64_t tokens, vocab, width, first_id;
};
void embedding_backward(const EmbeddingBackwardArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
