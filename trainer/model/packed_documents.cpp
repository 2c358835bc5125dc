#include "trainer/model/packed_documents.h"

#include <ATen/ops/empty.h>
#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "parallel/tensor/upload.h"

namespace hearth {
namespace {

// First rows of all documents of the micro-batch, ascending, each sequence's own start included.
std::vector<int32_t> first_rows(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence) {
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
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  return starts;
}

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

}  // namespace

PackedDocuments::PackedDocuments(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence,
                                 at::Device device)
    : batch_(static_cast<int64_t>(document_starts.size())),
      sequence_(sequence),
      device_(device),
      starts_(first_rows(document_starts, sequence)) {}

std::shared_ptr<const kernels::AttentionDocuments> PackedDocuments::fused(
    const kernels::AttentionHeads& heads) {
  auto& made = fused_[{heads.query, heads.kv, heads.width}];
  if (made) return made;
  auto documents = kernels::attention_documents(starts_, batch_ * sequence_, sequence_);
  documents.table = upload(kernels::attention_document_table(documents, heads), device_);
  return made = std::make_shared<const kernels::AttentionDocuments>(std::move(documents));
}

const at::Tensor& PackedDocuments::cu_seqlens() {
  if (cu_seqlens_.defined()) return cu_seqlens_;
  auto borders = starts_;
  borders.push_back(checked_cast<int32_t>(batch_ * sequence_));
  return cu_seqlens_ = upload(borders, device_);
}

int64_t PackedDocuments::longest() const {
  int64_t longest = 0;
  for (size_t i = 0; i < starts_.size(); ++i) {
    const int64_t end = i + 1 < starts_.size() ? starts_[i + 1] : batch_ * sequence_;
    longest = std::max(longest, end - starts_[i]);
  }
  return longest;
}

const at::Tensor& PackedDocuments::mask() {
  if (!mask_.defined()) mask_ = document_mask(starts_, batch_, sequence_).to(device_);
  return mask_;
}

std::string PackedDocuments::graph_form() const {
  std::string form;
  for (const auto& [heads, made] : fused_)
    form += fmt::format("fused {} {} {}: {} {};", std::get<0>(heads), std::get<1>(heads), std::get<2>(heads),
                        made->capacity, made->longest);
  if (cu_seqlens_.defined()) form += fmt::format("borders {} {};", count(), longest());
  if (mask_.defined()) form += "mask;";
  return form;
}

std::shared_ptr<PackedDocuments> PackedDocuments::copy() const {
  auto same = std::make_shared<PackedDocuments>(*this);
  for (auto& [heads, made] : same->fused_) {
    auto own = *made;
    own.table = own.table.clone();
    made = std::make_shared<const kernels::AttentionDocuments>(std::move(own));
  }
  if (cu_seqlens_.defined()) same->cu_seqlens_ = cu_seqlens_.clone();
  if (mask_.defined()) same->mask_ = mask_.clone();
  return same;
}

void PackedDocuments::write_over(PackedDocuments& copy) const {
  HEARTH_ASSERT(copy.graph_form() == graph_form());
  for (const auto& [heads, made] : fused_) copy.fused_.at(heads)->table.copy_(made->table);
  if (cu_seqlens_.defined()) copy.cu_seqlens_.copy_(cu_seqlens_);
  if (mask_.defined()) copy.mask_.copy_(mask_);
}

}  // namespace hearth
