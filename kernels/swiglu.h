// SwiGLU launchers: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or allocate.
// h = silu(gate) * up (Shazeer 2020); fp32 arithmetic, one rounding at the store. 16-byte accesses where
// pointers and width allow, scalar ones elsewhere.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct SwigluForwardArgs {
  DType dtype;     // F32 or BF16
  const void* gu;  // [rows, 2 * width], contiguous: gate half, then up half
  void* h;         // [rows, width], contiguous
  int64_t rows;
  int64_t width;
};
void swiglu_forward(const SwigluForwardArgs& args, cudaStream_t stream);

struct SwigluBackwardArgs {
  DType dtype;
  const void* dh;  // [rows, width], contiguous
  const void* gu;  // [rows, 2 * width], the forward's input
  void* dgu;       // [rows, 2 * width]; may be gu
  void* h;         // null, or [rows, width]: the forward's output, rebuilt in the same pass; may be dh
  int64_t rows;
  int64_t width;
};
void swiglu_backward(const SwigluBackwardArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
