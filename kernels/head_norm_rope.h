// RMSNorm of every head of q and k, then the rotary embedding, in one pass (models with qk_norm, as Qwen3).
// Launchers only: no torch, no __global__. Thread-safe; enqueue on `stream`, never synchronize or allocate.
// fp32 arithmetic, one rounding at the store. Formulas: rms_norm.h and rope_op.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/rope.h"

namespace hearth::kernels {

// [tokens, heads, head_dim], last dimension contiguous; strides in elements.
struct HeadsOf {
  const void* data;
  int64_t token_stride, head_stride;
};

struct HeadNormRopeTensor {
  int64_t heads;       // > 0
  HeadsOf x;           // before the norm
  const void* weight;  // [head_dim]
  float* rstd;         // [tokens, heads], contiguous: forward writes it, backward reads it
  HeadsOf dy;          // backward only: the gradient of the rotated heads
  // Forward: the rotated heads; may be x with its strides, where no backward follows. Backward: the gradient
  // of x; may be dy with its strides.
  void* out;
  int64_t out_token_stride, out_head_stride;
  // Backward only: null, or [head_dim]: the weight gradient is added to it, in a fixed order.
  void* dw_accum;
  DType dw_dtype;  // of dw_accum: F32 or BF16
};

struct HeadNormRopeArgs {
  DType dtype;  // of all but rstd and dw_accum: F32 or BF16
  HeadNormRopeTensor q, k;
  RopeAngles angles;
  int64_t tokens;
  int64_t head_dim;
  float eps;         // forward only, under the root
  float* workspace;  // backward only: head_norm_rope_workspace_floats(head_dim)
};

// Whether the launchers can run it: head_dim 64, 128, 256, 512 in bf16, half of these in fp32, and every
// pointer and stride a multiple of 16 bytes. Others are for rms_norm and rope.
bool head_norm_rope_fits(const HeadNormRopeArgs& args);
void head_norm_rope_forward(const HeadNormRopeArgs& args, cudaStream_t stream);
int64_t head_norm_rope_workspace_floats(int64_t head_dim);
void head_norm_rope_backward(const HeadNormRopeArgs& args, cudaStream_t stream);

}  // namespace hearth::kernels
