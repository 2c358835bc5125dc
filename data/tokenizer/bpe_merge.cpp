#include "data/tokenizer/bpe_merge.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.h"

namespace hearth {

namespace {

// Up to here scanning beats the heap; words of real text have 2 to 15 symbols.
constexpr size_t kShort = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  slots_.assign(std::bit_ceil(std::max<size_t>(16, merges.size() * 2)), Slot{kEmpty, {0, 0}});
  mask_ = slots_.size() - 1;
  for (const Merge& m : merges) {
    HEARTH_ASSERT(m.left >= 0 && m.right >= 0);
    const uint64_t key = pack(m.left, m.right);
    size_t slot = mix(key) & mask_;
    while (slots_[slot].key != kEmpty && slots_[slot].key != key) slot = (slot + 1) & mask_;
    slots_[slot] = {key, {m.rank, m.result}};
  }
}

void Merger::run(const MergeTable& table, std::vector<int32_t>& symbols) {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort) {
    run_short(table, symbols);
  } else {
    run_long(table, symbols);
  }
}

void Merger::run_short(const MergeTable& table, std::vector<int32_t>& symbols) {
  const auto value = [&](size_t i) {
    const MergeTable::Value* found = table.find(symbols[i], symbols[i + 1]);
    return found ? *found : MergeTable::Value{kNoRank, 0};
  };
  pairs_.resize(symbols.size() - 1);
  for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs_[i] = value(i);
  while (!pairs_.empty()) {
    size_t best = 0;
    for (size_t i = 1; i < pairs_.size(); ++i)
      if (pairs_[i].rank < pairs_[best].rank) best = i;
    if (pairs_[best].rank == kNoRank) return;
    symbols[best] = pairs_[best].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs_.erase(pairs_.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) pairs_[best - 1] = value(best - 1);
    if (best < pairs_.size()) pairs_[best] = value(best);
  }
}

// Candidates leave the heap by rank, then by position.
void Merger::push(const MergeTable& table, int32_t position) {
  const auto at = [&](int32_t i) -> const Node& { return nodes_[static_cast<size_t>(i)]; };
  if (position < 0 || at(position).next < 0) return;
  const MergeTable::Value* found = table.find(at(position).id, at(at(position).next).id);
  if (found == nullptr) return;
  heap_.push_back({found->rank, position, found->result});
}

void Merger::run_long(const MergeTable& table, std::vector<int32_t>& symbols) {
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto count = checked_cast<int32_t>(symbols.size());
  const auto at = [&](int32_t i) -> Node& { return nodes_[static_cast<size_t>(i)]; };
  nodes_.resize(symbols.size());
  heap_.clear();
  for (int32_t i = 0; i < count; ++i)
    at(i) = {symbols[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1, true};
  for (int32_t i = 0; i < count; ++i) push(table, i);
  std::make_heap(heap_.begin(), heap_.end(), later);
  const auto push_sorted = [&](int32_t position) {
    const size_t before = heap_.size();
    push(table, position);
    if (heap_.size() != before) std::push_heap(heap_.begin(), heap_.end(), later);
  };
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const Candidate top = heap_.back();
    heap_.pop_back();
    Node& left = at(top.position);
    if (!left.alive || left.next < 0) continue;
    Node& right = at(left.next);
    // A candidate is stale when its pair has changed since; `tokenizers` decides by the result, so this does
    // too.
    const MergeTable::Value* now = table.find(left.id, right.id);
    if (now == nullptr || now->result != top.result) continue;
    left.id = top.result;
    right.alive = false;
    left.next = right.next;
    if (right.next >= 0) at(right.next).previous = top.position;
    push_sorted(left.previous);
    push_sorted(top.position);
  }
  symbols.clear();
  for (int32_t i = 0; i >= 0; i = at(i).next) symbols.push_back(at(i).id);
}

}  // namespace hearth
