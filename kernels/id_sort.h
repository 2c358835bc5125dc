// Sorts the tokens of a batch by their row of a table, so that the tokens of one row are neighbours. Launcher
// only: no torch. Enqueues on `stream`, never synchronizes or allocates. Thread-safe. Radix sort over the
// bits that the table's size needs (cub::DeviceRadixSort), stable, so the result does not depend on anything
// but the ids.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct SortIdsArgs {
  const void* ids;  // [tokens]
  DType ids_dtype;  // I32 or I64
  int32_t*
      sorted_rows;  // [tokens]: id - first_id, ascending; `rows` for an id that is not in the table, so last
  int32_t* tokens_of;  // [tokens]: the token of each sorted row, ascending within a row
  void* workspace;     // sort_ids_workspace_bytes(tokens, rows), 256-byte aligned
  int64_t tokens;      // < 2^31
  int64_t rows;        // of the table, < 2^31
  int64_t first_id;    // the id of row 0
};
int64_t sort_ids_workspace_bytes(int64_t tokens, int64_t rows);
void sort_ids(const SortIdsArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
