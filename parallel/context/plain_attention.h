// attend and attend_backward of block_attention.h by matrix products in fp32 (fp64 for fp64), some queries at
// a time: for what no fused kernel takes (CUDA in fp32 or with an odd head width), and what the fused kernels
// are tested against.
#pragma once

#include "parallel/context/block_attention.h"

namespace hearth::context {

// Elements of the score matrix that exist at once: 64 MB in fp32.
inline constexpr int64_t kPlainScores = int64_t{1} << 24;

AttendedBlock plain_attend(const at::Tensor& q_BLHW, const at::Tensor& k_BMKW, const at::Tensor& v_BMKW,
                           BlockMask mask, int64_t max_scores = kPlainScores);
AttentionGrads plain_attend_backward(const at::Tensor& dout_BLHW, const at::Tensor& q_BLHW,
                                     const at::Tensor& k_BMKW, const at::Tensor& v_BMKW,
                                     const AttendedBlock& attended, BlockMask mask,
                                     int64_t max_scores = kPlainScores);

}  // namespace hearth::context
