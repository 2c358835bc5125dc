// Dropout launcher (Srivastava et al. 2014): no torch, no __global__. Thread-safe; enqueues on `stream`,
// never synchronizes or allocates. y = x / (1 - p) where an element is kept, 0 where it is dropped; which are
// is a pure function of (seed, key of the row, column), so that no mask is stored: it is drawn again in
// backward.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/dropout_mask.h"

namespace hearth::kernels {

struct DropoutArgs {
  DType dtype;          // F32 or BF16
  const void* x;        // [rows, cols], contiguous
  void* y;              // [rows, cols], contiguous; may be x
  const int64_t* keys;  // [rows]
  DropoutMask mask;
  int64_t rows, cols;
  bool accumulate;  // y += instead of y =
};
void dropout(const DropoutArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
