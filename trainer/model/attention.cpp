#include "trainer/model/attention.h"

#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "parallel/tensor/upload.h"

namespace hearth {
namespace {

// Row starts of all documents of the micro-batch, ascending, each sequence's own start included.
std::vector<int32_t> all_starts(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence) {
  std::vector<int32_t> starts;
  for (size_t b = 0; b < document_starts.size(); ++b) {
    const auto base = checked_cast<int32_t>(static_cast<int64_t>(b) * sequence);
    starts.push_back(base);
    for (const int32_t start : document_starts[b]) {
      HEARTH_REQUIRE(start >= 0 && start < sequence, "document start {} outside a sequence of {} tokens",
                     start, sequence);
      if (start > 0) starts.push_back(base + start);
    }
  }
  HEARTH_REQUIRE(std::is_sorted(starts.begin(), starts.end()), "document starts are not ascending");
  return starts;
}

// bool [B, 1, S, S]: key at or before the query and in the same document.
at::Tensor document_mask(const std::vector<int32_t>& starts, int64_t batch, int64_t sequence) {
  at::Tensor mask = at::empty({batch, 1, sequence, sequence}, at::kBool);
  auto* out = mask.data_ptr<bool>();
  size_t document = 0;
  for (int64_t row = 0; row < batch * sequence; ++row) {
    while (document + 1 < starts.size() && starts[document + 1] <= row) ++document;
    const int64_t first = starts[document] - row / sequence * sequence, query = row % sequence;
    bool* line = out + row * sequence;
    std::fill(line, line + sequence, false);
    std::fill(line + first, line + query + 1, true);
  }
  return mask;
}

// [N, heads, W] -> [B, heads, S, W], a view.
at::Tensor heads_first(const at::Tensor& rows, const AttentionLayout& layout) {
  return rows.view({layout.batch, layout.sequence, rows.size(1), rows.size(2)}).transpose(1, 2);
}

at::Tensor rows_first(const at::Tensor& context_BHSW) {
  return context_BHSW.transpose(1, 2).reshape({-1, context_BHSW.size(1) * context_BHSW.size(3)});
}

}  // namespace

AttentionLayout make_attention_layout(const std::vector<std::vector<int32_t>>& document_starts,
                                      int64_t sequence, at::Device device, at::ScalarType dtype) {
  AttentionLayout layout;
  layout.batch = static_cast<int64_t>(document_starts.size());
  layout.sequence = sequence;
  auto starts = all_starts(document_starts, sequence);
  layout.has_boundaries = starts.size() > document_starts.size();
  if (!layout.has_boundaries) return layout;
  if (device.is_cpu() || dtype == at::kFloat) {
    layout.mask = document_mask(starts, layout.batch, sequence).to(device);
    return layout;
  }
  starts.push_back(checked_cast<int32_t>(layout.batch * sequence));
  for (size_t i = 1; i < starts.size(); ++i)
    layout.longest_document = std::max<int64_t>(layout.longest_document, starts[i] - starts[i - 1]);
  layout.cu_seqlens = upload(starts, device);
  return layout;
}

KvCache::KvCache(int64_t layers, int64_t batch, int64_t capacity, int64_t kv_heads, int64_t head_width,
                 at::TensorOptions options) {
  for (int64_t layer = 0; layer < layers; ++layer) {
    keys.push_back(at::empty({batch, capacity, kv_heads, head_width}, options));
    values.push_back(at::empty({batch, capacity, kv_heads, head_width}, options));
  }
}

at::Tensor attention(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                     const AttentionLayout& layout) {
  const auto parts = qkv_NHW.split_with_sizes({num_heads, num_kv_heads, num_kv_heads}, 1);
  if (layout.cu_seqlens.defined()) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(qkv_NHW.size(2)));
    const auto out =
        at::_flash_attention_forward(parts[0], parts[1], parts[2], layout.cu_seqlens, layout.cu_seqlens,
                                     layout.longest_document, layout.longest_document, /*dropout_p=*/0.0,
                                     /*is_causal=*/true, /*return_debug_mask=*/false, scale);
    return std::get<0>(out).reshape({qkv_NHW.size(0), -1});
  }
  const at::Tensor q = heads_first(parts[0], layout), k = heads_first(parts[1], layout),
                   v = heads_first(parts[2], layout);
  const std::optional<at::Tensor> mask = layout.mask.defined() ? std::optional(layout.mask) : std::nullopt;
  return rows_first(at::scaled_dot_product_attention(q, k, v, mask, 0.0, /*is_causal=*/!mask, std::nullopt,
                                                     /*enable_gqa=*/num_heads != num_kv_heads));
}

at::Tensor attention_cached(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                            const AttentionLayout& layout, KvCache& cache, int64_t layer) {
  const auto parts = qkv_NHW.split_with_sizes({num_heads, num_kv_heads, num_kv_heads}, 1);
  at::Tensor keys = cache.keys[static_cast<size_t>(layer)], values = cache.values[static_cast<size_t>(layer)];
  const int64_t total = cache.length + layout.sequence;
  HEARTH_REQUIRE(total <= keys.size(1), "key/value cache holds {} tokens, {} needed", keys.size(1), total);
  const std::vector<int64_t> shape{layout.batch, layout.sequence, num_kv_heads, qkv_NHW.size(2)};
  keys.narrow(1, cache.length, layout.sequence).copy_(parts[1].view(shape));
  values.narrow(1, cache.length, layout.sequence).copy_(parts[2].view(shape));
  const at::Tensor q = heads_first(parts[0], layout);
  const at::Tensor k = keys.narrow(1, 0, total).transpose(1, 2),
                   v = values.narrow(1, 0, total).transpose(1, 2);
  // One new row sees everything; several rows behind a cache need the causal mask shifted by what is stored.
  std::optional<at::Tensor> mask;
  if (layout.sequence > 1 && cache.length > 0) {
    const auto options = at::TensorOptions(qkv_NHW.device()).dtype(at::kLong);
    mask = at::arange(total, options).unsqueeze(0).le(at::arange(cache.length, total, options).unsqueeze(1));
  }
  return rows_first(at::scaled_dot_product_attention(
      q, k, v, mask, 0.0, cache.length == 0 && layout.sequence > 1, std::nullopt, num_heads != num_kv_heads));
}

}  // namespace hearth
