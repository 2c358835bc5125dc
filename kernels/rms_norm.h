// RMSNorm launchers: no torch, no __global__; callable from plain C++. Thread-safe; they enqueue on `stream`,
// never synchronize and never allocate.
//   y[r, c] = w[c] * x[r, c] * rstd[r],  rstd[r] = 1 / sqrt(mean_c(x[r, c]^2) + eps)
// Source: Zhang & Sennrich 2019, eq. 4. Sums in fp32; rounded to the activation dtype on the store only.
// Rows that are 16-byte aligned (pointers, strides and cols) and at most 8192 elements wide are read once, in
// 16-byte accesses, and stay in registers; all others take a slower path with scalar accesses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/row_layout.h"

namespace hearth::kernels {

struct RmsNormForwardArgs {
  DType dtype;    // of x, w, y: F32 or BF16
  const void* x;  // [rows, cols] as x_rows says
  RowLayout x_rows;
  const void* w;  // [cols]
  void* y;        // [rows, cols], contiguous
  float* rstd;    // [rows], kept for backward
  int64_t rows;
  int64_t cols;
  float eps;  // under the root
  // null, or [rows, cols] as residual_rows says: the norm is then of s = x + residual, rounded to dtype.
  const void* residual = nullptr;
  RowLayout residual_rows = {};
  void* sum = nullptr;  // s [rows, cols], contiguous, with a residual; may be x or residual where contiguous
};
// Throws Error{Usage} for a dtype it cannot run.
void rms_norm_forward(const RmsNormForwardArgs& args, cudaStream_t stream);

struct RmsNormBackwardArgs {
  DType dtype;     // of dy, x, w, residual, dx
  const void* dy;  // [rows, cols] as dy_rows says
  RowLayout dy_rows;
  const void* x;  // [rows, cols] as x_rows says
  RowLayout x_rows;
  const void* w;         // [cols]
  const float* rstd;     // [rows], of the forward
  const void* residual;  // null, or [rows, cols] as residual_rows says: added to dx
  RowLayout residual_rows;
  void* dx;          // [rows, cols], contiguous; may be dy or residual where that is contiguous
  void* y;           // null, or [rows, cols], contiguous: the forward's output again, its very bits; no alias
  void* dw_accum;    // null, or [cols]: the weight gradient is added to it, in a fixed order
  DType dw_dtype;    // of dw_accum: F32 or BF16
  float* workspace;  // rms_norm_backward_workspace_floats(rows, cols); unused where dw_accum is null
  int64_t rows;
  int64_t cols;
};
int64_t rms_norm_backward_workspace_floats(int64_t rows, int64_t cols);
void rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
