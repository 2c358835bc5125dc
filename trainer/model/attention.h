// Causal grouped-query attention over packed documents and over a key/value cache, through LibTorch's kernels
// (cuDNN or FlashAttention-2 on CUDA: Dao 2023; the blocked CPU kernel otherwise).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace hearth {

// Which rows attend to which: B sequences of S rows, causal, and inside a sequence only within one document.
struct AttentionLayout {
  int64_t batch = 0, sequence = 0;
  bool has_boundaries = false;  // false: every sequence is one document and the fields below are unused
  at::Tensor cu_seqlens;  // int32 [documents + 1], row at which each document starts (CUDA, half precision)
  int64_t longest_document = 0;
  at::Tensor mask;  // bool [B, 1, S, S], true = attend (CPU, and CUDA in fp32)
};

// `document_starts[b]` lists the positions in [0, sequence) of sequence b at which a document begins (0
// included or not). Everything the kernels need is made once per micro-batch, for activations of `dtype` on
// `device`.
AttentionLayout make_attention_layout(const std::vector<std::vector<int32_t>>& document_starts,
                                      int64_t sequence, at::Device device, at::ScalarType dtype);

// Keys and values of the tokens so far, one pair a layer, [B, capacity, K, W]. Value semantics of tensors.
struct KvCache {
  KvCache(int64_t layers, int64_t batch, int64_t capacity, int64_t kv_heads, int64_t head_width,
          at::TensorOptions options);
  std::vector<at::Tensor> keys, values;
  int64_t length = 0;  // tokens stored; advanced by the model after each call
};

// qkv_NHW: [N, H + 2K, W] after RoPE. Returns the context [N, H x W]. Differentiable.
at::Tensor attention(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                     const AttentionLayout& layout);
// The same for new rows behind a cache (no gradient): stores the new keys and values of `layer`, attends to
// all.
at::Tensor attention_cached(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                            const AttentionLayout& layout, KvCache& cache, int64_t layer);

}  // namespace hearth
