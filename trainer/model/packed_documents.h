// The documents of a micro-batch, in the forms that the kernels of attention take: each is made and sent to
// the device when it is first asked for, and kept for the other layers and for other models that see the same
// tokens. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/attention_op.h"

namespace hearth {

class PackedDocuments {
 public:
  // `document_starts[b]` lists the positions in [0, sequence) of sequence b at which a document begins (0
  // included or not), ascending. Throws Error{Usage} for others.
  PackedDocuments(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence,
                  at::Device device);

  // Documents, no fewer than sequences: a border that none crosses is between sequences, too.
  int64_t count() const { return static_cast<int64_t>(starts_.size()); }

  // For attention_forward_op, with rows of such heads.
  std::shared_ptr<const kernels::AttentionDocuments> fused(const kernels::AttentionHeads& heads);
  // int32 [count + 1]: the first row of each document, and N.
  const at::Tensor& cu_seqlens();
  int64_t longest() const;
  // bool [B, 1, S, S]: true where the key is at or before the query and in the same document.
  const at::Tensor& mask();

  // For a CUDA graph, which reads the same memory in every replay. What a graph has fixed of the forms made
  // so far: for documents of an equal one it does the same work.
  std::string graph_form() const;
  // The same documents in memory of their own, and later others of an equal form written over them, on the
  // device only.
  std::shared_ptr<PackedDocuments> copy() const;
  void write_over(PackedDocuments& copy) const;

 private:
  int64_t batch_, sequence_;
  at::Device device_;
  std::vector<int32_t> starts_;  // first rows
  std::map<std::tuple<int64_t, int64_t, int64_t>, std::shared_ptr<const kernels::AttentionDocuments>> fused_;
  at::Tensor cu_seqlens_, mask_;
};

}  // namespace hearth
