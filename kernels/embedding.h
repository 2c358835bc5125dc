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

// Takes the tokens sorted by their row (kernels/id_sort.h): no atomics. Tokens are added in order within
// chunks of 32 of one row, and the chunks in order: a fixed order, whatever else is in the batch.
struct EmbeddingBackwardArgs {
  DType dtype;     // of dy: F32 or BF16
  const void* dy;  // [tokens, width], contiguous
  const int32_t*
      sorted_rows;           // [tokens], ascending; the value `rows` stands for ids that are not in the table
  const int32_t* tokens_of;  // [tokens]: the token of each sorted row, ascending within a row
  DType accum_dtype;         // F32 or BF16; a row is rounded to it once
  void* dtable_accum;        // [rows, width]: added to
  float* workspace;          // embedding_backward_workspace_floats(tokens, width)
  int64_t tokens, rows, width;
};
int64_t embedding_backward_workspace_floats(int64_t tokens, int64_t width);
void embedding_backward(const EmbeddingBackwardArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
