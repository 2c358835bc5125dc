// Column sums added to a buffer, in two stages and a fixed order: what bias and norm-weight gradients need.
// Sums in fp32; a bf16 buffer is rounded once a call. Launchers only: no torch. Enqueue on `stream`, never
// allocate, never synchronize. Thread-safe.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

// accum[c] += sum over p of partial[p, c], p in order within each of 32 interleaved lanes.
struct AddPartialRows {
  const float* partial;  // [num_partials, cols], contiguous
  void* accum;           // [cols]
  int64_t num_partials;
  int64_t cols;
  DType accum_dtype;  // F32 or BF16
};
// Right behind the launch that makes the partial rows, an ordinary one which does not touch `accum`: that is
// read before it has ended.
void add_partial_rows(const AddPartialRows& args, cudaStream_t stream);
// Two buffers in one launch.
void add_partial_rows(const AddPartialRows& first, const AddPartialRows& second, cudaStream_t stream);

// accum[c] += sum over r of x[r, c].
struct ColumnSum {
  DType dtype;        // of x: F32 or BF16
  const void* x;      // [rows, cols], contiguous
  void* accum;        // [cols]
  DType accum_dtype;  // F32 or BF16
  float* workspace;   // column_sum_workspace_floats(rows, cols)
  int64_t rows;
  int64_t cols;
};
int64_t column_sum_workspace_floats(int64_t rows, int64_t cols);
void column_sum(const ColumnSum& args, cudaStream_t stream);

}  // namespace hearth::kernels
