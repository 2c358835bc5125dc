// NF4 weights back to floating point: launcher without torch. Thread-safe; enqueues on `stream`, never
// synchronizes or allocates. What the numbers mean is in kernels/nf4_op.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

struct Nf4DequantizeArgs {
  DType dtype;               // of out: F32 or BF16
  const uint8_t* codes;      // [count / 2], two values a byte, the first in the high half; 4-byte aligned
  const uint8_t* scales;     // [count / 64]: what dynamic_map takes
  const float* groups;       // [ceil(blocks of the whole tensor / 256)]
  const float* dynamic_map;  // [256]
  float mean;
  void* out;      // [count], contiguous, 16-byte aligned
  int64_t count;  // a multiple of 64
  // Block b here is block first + b / run * stride + b % run of the whole tensor.
  int64_t first, run, stride;
};
void nf4_dequantize(const Nf4DequantizeArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
