// Remembers the ids of short words: most pieces of a text are words seen before. Fixed size, direct-mapped; a
// newer word takes the place of an older one. One cache per thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace hearth {

class WordCache {
 public:
  static constexpr size_t kMaxKey = 30, kMaxIds = 8;

  WordCache() : entries_(size_t{1} << kBits) {}

  // The slot that `word` hashes to; find and insert take it, so that a miss hashes once.
  static size_t slot(std::string_view word) {
    uint64_t h = 0x9e3779b97f4a7c15ull ^ word.size();
    size_t i = 0;
    for (; i + 8 <= word.size(); i += 8) {
      uint64_t part = 0;
      std::memcpy(&part, word.data() + i, 8);
      h = (h ^ part) * 0xff51afd7ed558ccdull;
      h ^= h >> 32;
    }
    uint64_t tail = 0;
    if (i < word.size()) std::memcpy(&tail, word.data() + i, word.size() - i);
    h = (h ^ tail) * 0xc4ceb9fe1a85ec53ull;
    return static_cast<size_t>(h >> (64 - kBits));
  }

  // The remembered ids, or an empty span.
  std::span<const int32_t> find(size_t slot, std::string_view word) const {
    const Entry& e = entries_[slot];
    if (e.key_size != word.size() || std::memcmp(e.key, word.data(), word.size()) != 0) return {};
    return {e.ids, e.num_ids};
  }

  // Ignores words and results that do not fit.
  void insert(size_t slot, std::string_view word, std::span<const int32_t> ids) {
    if (word.empty() || word.size() > kMaxKey || ids.empty() || ids.size() > kMaxIds) return;
    Entry& e = entries_[slot];
    e.key_size = static_cast<uint8_t>(word.size());
    e.num_ids = static_cast<uint8_t>(ids.size());
    std::memcpy(e.key, word.data(), word.size());
    std::memcpy(e.ids, ids.data(), ids.size_bytes());
  }

 private:
  static constexpr int kBits = 15;  // 2 MiB: fits a second-level cache
  struct alignas(64) Entry {        // one cache line
    uint8_t key_size = 0, num_ids = 0;
    char key[kMaxKey];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Entry) == 64);
  std::vector<Entry> entries_;
};

}  // namespace hearth
