// Causal grouped-query attention on the rows of a fused projection, forward and backward: B sequences of S
// rows back to back, and where they are divided into documents, attention within each document. On CUDA
// through cuDNN (attention.h); on the CPU, and with KernelPath::Plain, composed of ATen operations in fp32 a
// document at a time. Softmax of scores / sqrt(W). Thread-safe. Letters: N rows = B x S, H query heads, K key
// and value heads (a divisor of H), W width of a head, E = H x W.
#pragma once

#include <memory>
#include <vector>

#include "kernels/op_support.h"

namespace hearth::kernels {

// Where the documents of a micro-batch lie. The kernels are told of `capacity` documents, those after the
// last one empty, none longer than `longest`: both take few values, so that few plans are made.
struct AttentionDocuments {
  std::vector<int32_t> starts;  // first row of each document, ascending, the first 0
  int64_t rows = 0;             // N
  int64_t capacity = 0, longest = 0;
  at::Tensor table;  // attention_document_table() on the device; undefined on the CPU
};

struct AttentionHeads {
  int64_t query = 0, kv = 0, width = 0;
};

// `starts`: as above, every multiple of `sequence` below `rows` among them. The table is left undefined.
// Throws Error{Usage} for starts that make no sense.
AttentionDocuments attention_documents(std::vector<int32_t> starts, int64_t rows, int64_t sequence);
// What cuDNN reads of the documents, for one layout of heads: a vector of fixed length for a capacity, to be
// copied to the device once for all layers.
std::vector<int64_t> attention_document_table(const AttentionDocuments& documents,
                                              const AttentionHeads& heads);

struct AttentionCall {
  int64_t batch = 0, sequence = 0;  // B, S
  AttentionHeads heads;
  std::shared_ptr<const AttentionDocuments> documents;  // null: a sequence is one document
};

// Whether the fused path on CUDA takes such rows. It was built for Hopper and for the widths of today's
// models; one row a sequence is refused by cuDNN's backward pass.
bool attention_is_fused(at::ScalarType dtype, int64_t width, int64_t sequence);

struct AttentionResult {
  at::Tensor out_NE;
  at::Tensor statistics;  // fp32 log-sum-exp for backward: [B, H, S], with documents [N, H]
};

// qkv: [N, H + 2K, W], contiguous; fp32 or bf16, fused bf16. Throws Error{Usage} where the fused path was
// asked for and attention_is_fused() says no.
AttentionResult attention_forward_op(const at::Tensor& qkv_NHW, const AttentionCall& call,
                                     KernelPath path = KernelPath::Fused);

// Returns d(qkv), a new contiguous tensor. d_out: [N, E], contiguous; the others as in and from forward. On
// CUDA the bits of d(q) vary from run to run (attention.h).
at::Tensor attention_backward_op(const at::Tensor& d_out_NE, const at::Tensor& qkv_NHW,
                                 const AttentionResult& forward, const AttentionCall& call,
                                 KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
