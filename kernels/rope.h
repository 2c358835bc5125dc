// Rotary embedding launcher: no torch, no __global__. Thread-safe; enqueues on `stream`, never synchronizes
// or allocates. Rotate-half convention (rope_op.h has the formula); fp32 arithmetic, one rounding at the
// store. q and k in one launch; 16-byte accesses where pointers, strides and head_dim / 2 allow, scalar ones
// elsewhere.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

// [tokens, heads, head_dim], last dimension contiguous; strides in elements. `out` may be `in` with equal
// strides.
struct RopeTensor {
  const void* in;
  void* out;
  int64_t heads;
  int64_t in_token_stride, in_head_stride;
  int64_t out_token_stride, out_head_stride;
};

struct RopeAngles {
  const float* cosine;    // [num_positions, head_dim / 2], contiguous
  const float* sine;      // the same
  const void* positions;  // [tokens]; one outside [0, num_positions) gives NaN
  DType positions_dtype;  // I32 or I64
  int64_t num_positions;
};

struct RopeArgs {
  DType dtype;  // of q and k: F32 or BF16
  RopeTensor q, k;
  RopeAngles angles;
  int64_t tokens;
  int64_t head_dim;  // even
  float sign;        // 1: rotate by the angle (forward); -1: by its negative (backward)
};
void rope(const RopeArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
