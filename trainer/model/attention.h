// Causal grouped-query attention over packed documents (cuDNN's kernels in training on a GPU, see
// attention_backend.h) and over a key/value cache (LibTorch's).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention_op.h"
#include "parallel/context/block_attention.h"
#include "trainer/model/attention_backend.h"
#include "trainer/model/packed_documents.h"

namespace hearth {

// Which rows attend to which: B sequences of S rows, causal, and inside a sequence only within one document.
struct AttentionLayout {
  int64_t batch = 0, sequence = 0;
  // B and S come again and again, as in training, so that plans for them are worth making.
  bool recurs = false;
  std::shared_ptr<PackedDocuments> documents;  // null: every sequence is one document
};

// The model that a layout is made for; others may use it too.
struct AttentionTarget {
  at::Device device;
  at::ScalarType dtype;  // of the activations
  kernels::AttentionHeads heads;
  AttentionBackend setting = AttentionBackend::Auto;
};

// `document_starts`: as PackedDocuments takes them. What the target's layers need lies on the device, or on
// its way there, when this returns.
AttentionLayout make_attention_layout(const std::vector<std::vector<int32_t>>& document_starts,
                                      int64_t sequence, const AttentionTarget& target);

// Keys and values of the tokens so far, one pair a layer, [B, capacity, K, W]. Value semantics of tensors.
struct KvCache {
  KvCache(int64_t layers, int64_t batch, int64_t capacity, int64_t kv_heads, int64_t head_width,
          at::TensorOptions options);
  std::vector<at::Tensor> keys, values;
  int64_t length = 0;  // tokens stored; advanced by the model after each call
};

// qkv_NHW: [N, H + 2K, W] after RoPE. Returns the context [N, H x W]. Differentiable. Throws Error{Config}
// where `setting` cannot run such rows.
at::Tensor attention(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                     const AttentionLayout& layout, AttentionBackend setting = AttentionBackend::Auto);
// What context_attention is to run where several ranks share the sequences, of which `layout` has the rows
// that are here: attention's choice, for chunks of half of them.
context::BlockKernels block_kernels(const AttentionLayout& layout, const AttentionTarget& target);
// Attention for new rows behind a cache (no gradient): stores the new keys and values of `layer`, attends to
// all.
at::Tensor attention_cached(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                            const AttentionLayout& layout, KvCache& cache, int64_t layer);

}  // namespace hearth
