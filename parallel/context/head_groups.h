// The shapes of grouped-query attention inside the kernels: the H/K query heads that share a key/value head
// become the heads of one batch entry, so that keys are shared by broadcasting. Letters as in
// block_attention.h. Views where the strides allow, copies otherwise.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

namespace hearth::context {

inline double scale_of(const at::Tensor& q) {
  return 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
}

// [B, L, H, W] -> [B x K, H/K, L, W].
inline at::Tensor grouped(const at::Tensor& x_BLHW, int64_t kv_heads) {
  return x_BLHW.unflatten(2, {kv_heads, x_BLHW.size(2) / kv_heads}).permute({0, 2, 3, 1, 4}).flatten(0, 1);
}
inline at::Tensor ungrouped(const at::Tensor& x, int64_t batch) {
  return x.unflatten(0, {batch, x.size(0) / batch}).permute({0, 3, 1, 2, 4}).flatten(2, 3);
}
// [B, H, L] -> [B x K, H/K, L].
inline at::Tensor grouped_lse(const at::Tensor& lse_BHL, int64_t kv_heads) {
  return lse_BHL.unflatten(1, {kv_heads, lse_BHL.size(1) / kv_heads}).flatten(0, 1);
}
inline at::Tensor ungrouped_lse(const at::Tensor& lse, int64_t batch) {
  return lse.unflatten(0, {batch, lse.size(0) / batch}).flatten(1, 2);
}
// [B, M, K, W] -> [B x K, 1, M, W].
inline at::Tensor grouped_keys(const at::Tensor& x_BMKW) {
  return x_BMKW.transpose(1, 2).flatten(0, 1).unsqueeze(1);
}
inline at::Tensor ungrouped_keys(const at::Tensor& x, int64_t batch) {
  return x.unflatten(0, {batch, x.size(0) / batch}).transpose(1, 2);
}

}  // namespace hearth::context
