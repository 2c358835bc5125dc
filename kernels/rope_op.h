// Rotary position embedding (Su et al. 2021) in the rotate-half convention of transformers: with c, s the row
// of the table at a token's position, out[i] = x[i] c[i] - x[i + D/2] s[i], out[i + D/2] = x[i + D/2] c[i] +
// x[i] s[i]. cos and sin stay fp32 and the result is rounded once; in bf16 transformers rounds cos and sin
// too, so ours is the more accurate one there, and equal in fp32. Thread-safe. Letters: N tokens, H query
// heads, K key heads, D head_dim, P positions.
#pragma once

#include "kernels/op_support.h"

namespace hearth::kernels {

enum class RopeScalingKind { Default, Llama3 };

// The fields of rope_parameters in config.json; those after `theta` matter for Llama3 only.
struct RopeFrequencies {
  int64_t head_dim = 0;
  double theta = 10000.0;
  RopeScalingKind scaling = RopeScalingKind::Default;
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

// Inverse frequencies, fp32 [D / 2] on the CPU, by the same fp32 operations as transformers 5.23.
at::Tensor rope_inverse_frequencies(const RopeFrequencies& frequencies);

struct RopeTable {
  at::Tensor cos_PD2, sin_PD2;  // fp32 [P, D / 2], contiguous
};
// Angles in fp32 (float(position) * inv_freq), as transformers computes them; built on the CPU, then moved.
RopeTable rope_table(const at::Tensor& inv_freq, int64_t num_positions, at::Device device);

enum class RopeDirection { Forward, Backward };  // Backward rotates by the negative angle

struct RopeResult {
  at::Tensor q, k;
};

// q [N, H, D], k [N, K, D]: last dimension contiguous, other strides free (views into the fused qkv output).
// positions_N: int32 or int64, each in [0, P); on the CPU a wrong one throws Error{Usage}, on CUDA it gives
// NaN. Returns new contiguous tensors.
RopeResult rope_op(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const RopeTable& table,
                   const at::Tensor& positions_N, RopeDirection direction,
                   KernelPath path = KernelPath::Fused);
// The same into q_out and k_out (shapes, dtype as the inputs, strides free). An output may be its input (in
// place); other overlap is not allowed.
void rope_out_op(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const RopeTable& table,
                 const at::Tensor& positions_N, RopeDirection direction, at::Tensor& q_out, at::Tensor& k_out,
                 KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
