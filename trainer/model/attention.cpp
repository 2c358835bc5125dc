#include "trainer/model/attention.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"

namespace hearth {
namespace {

// [N, heads, W] -> [B, heads, S, W], a view.
at::Tensor heads_first(const at::Tensor& rows, const AttentionLayout& layout) {
  return rows.view({layout.batch, layout.sequence, rows.size(1), rows.size(2)}).transpose(1, 2);
}

at::Tensor rows_first(const at::Tensor& context_BHSW) {
  return context_BHSW.transpose(1, 2).reshape({-1, context_BHSW.size(1) * context_BHSW.size(3)});
}

struct KeptCall : torch::CustomClassHolder {
  explicit KeptCall(kernels::AttentionCall c) : call(std::move(c)) {}
  kernels::AttentionCall call;
};

// Returns the gradient of the whole projection as one new tensor, which the next function writes into.
struct FusedAttentionFn : torch::autograd::Function<FusedAttentionFn> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& qkv_NHW,
                            const kernels::AttentionCall& call) {
    auto result = kernels::attention_forward_op(qkv_NHW, call);
    ctx->save_for_backward({qkv_NHW, result.out_NE, result.statistics});
    ctx->saved_data["call"] = c10::IValue::make_capsule(c10::make_intrusive<KeptCall>(call));
    return result.out_NE;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto kept = c10::static_intrusive_pointer_cast<KeptCall>(ctx->saved_data["call"].toCapsule());
    return {kernels::attention_backward_op(grads[0].contiguous(), saved[0], {saved[1], saved[2]}, kept->call),
            at::Tensor()};
  }
};

AttentionBackend backend_for(const AttentionTarget& target, int64_t sequence) {
  return choose_attention_backend(target.setting,
                                  {.device = target.device,
                                   .dtype = target.dtype,
                                   .head_width = target.heads.width,
                                   .sequence = sequence,
                                   .deterministic = at::globalContext().deterministicAlgorithms()});
}

// Rows of documents, or of sequences, which are batches of one length each.
at::Tensor flash_attention(const at::Tensor& qkv_NHW, const std::vector<at::Tensor>& parts,
                           const AttentionLayout& layout) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(qkv_NHW.size(2)));
  PackedDocuments* const documents = layout.documents.get();
  const auto rows = [&](const at::Tensor& part) {
    return documents ? part : part.view({layout.batch, layout.sequence, part.size(1), part.size(2)});
  };
  const auto starts = documents ? std::optional(documents->cu_seqlens()) : std::nullopt;
  const int64_t longest = documents ? documents->longest() : layout.sequence;
  const auto out =
      at::_flash_attention_forward(rows(parts[0]), rows(parts[1]), rows(parts[2]), starts, starts, longest,
                                   longest, /*dropout_p=*/0.0, /*is_causal=*/true,
                                   /*return_debug_mask=*/false, scale);
  return std::get<0>(out).reshape({qkv_NHW.size(0), -1});
}

at::Tensor aten_attention(const std::vector<at::Tensor>& parts, const AttentionLayout& layout) {
  const at::Tensor q = heads_first(parts[0], layout), k = heads_first(parts[1], layout),
                   v = heads_first(parts[2], layout);
  const auto mask = layout.documents ? std::optional(layout.documents->mask()) : std::nullopt;
  return rows_first(at::scaled_dot_product_attention(q, k, v, mask, 0.0, /*is_causal=*/!mask, std::nullopt,
                                                     /*enable_gqa=*/q.size(1) != k.size(1)));
}

}  // namespace

AttentionLayout make_attention_layout(const std::vector<std::vector<int32_t>>& document_starts,
                                      int64_t sequence, const AttentionTarget& target) {
  AttentionLayout layout{static_cast<int64_t>(document_starts.size()), sequence, /*recurs=*/true, nullptr};
  auto documents = std::make_shared<PackedDocuments>(document_starts, sequence, target.device);
  if (documents->count() == layout.batch) return layout;
  switch (backend_for(target, sequence)) {
    case AttentionBackend::Cudnn:
      documents->fused(target.heads);
      break;
    case AttentionBackend::Flash:
      documents->cu_seqlens();
      break;
    default:
      documents->mask();
  }
  layout.documents = std::move(documents);
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
                     const AttentionLayout& layout, AttentionBackend setting) {
  const kernels::AttentionHeads heads{num_heads, num_kv_heads, qkv_NHW.size(2)};
  const AttentionTarget target{qkv_NHW.device(), qkv_NHW.scalar_type(), heads, setting};
  const AttentionBackend backend =
      layout.recurs ? backend_for(target, layout.sequence) : AttentionBackend::Aten;
  if (backend == AttentionBackend::Cudnn)
    return FusedAttentionFn::apply(
        qkv_NHW,
        kernels::AttentionCall{.batch = layout.batch,
                               .sequence = layout.sequence,
                               .heads = heads,
                               .documents = layout.documents ? layout.documents->fused(heads) : nullptr});
  const auto parts = qkv_NHW.split_with_sizes({num_heads, num_kv_heads, num_kv_heads}, 1);
  return backend == AttentionBackend::Flash ? flash_attention(qkv_NHW, parts, layout)
                                            : aten_attention(parts, layout);
}

context::BlockKernels block_kernels(const AttentionLayout& layout, const AttentionTarget& target) {
  const bool cudnn = layout.recurs && backend_for(target, layout.sequence / 2) == AttentionBackend::Cudnn;
  return cudnn ? context::BlockKernels::Cudnn : context::BlockKernels::Flash;
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
