// The inner loop of byte-pair encoding (Sennrich et al. 2016): which two neighbouring symbols join next.
// Shared by the tokenizer.json and the SentencePiece engines, which differ in where symbols and ranks come
// from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hearth {

struct Merge {
  int32_t left, right;  // symbol ids, >= 0
  int32_t rank;         // lower goes first; equal ranks: the leftmost pair goes first
  int32_t result;       // symbol id
};

// (left, right) -> (rank, result). Immutable after construction, thread-safe.
class MergeTable {
 public:
  struct Value {
    int32_t rank, result;
  };
  MergeTable() : MergeTable(std::vector<Merge>{}) {}
  // Of two merges of the same pair the later one counts.
  explicit MergeTable(const std::vector<Merge>& merges);

  const Value* find(int32_t left, int32_t right) const {
    if (left < 0 || right < 0) return nullptr;
    const uint64_t key = pack(left, right);
    for (size_t slot = mix(key) & mask_;; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return &slots_[slot].value;
      if (slots_[slot].key == kEmpty) return nullptr;
    }
  }

 private:
  struct Slot {
    uint64_t key;
    Value value;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t pack(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  static uint64_t mix(uint64_t key) {  // the finalizer of MurmurHash3 (Appleby), first half
    key ^= key >> 33;
    key *= 0xff51afd7ed558ccdull;
    return key ^ key >> 32;
  }
  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
};

// Applies merges until none fits. Short words scan for the best pair; long ones keep candidates in a heap
// over a linked list, so that a piece of n symbols costs n log n. One Merger per thread; `symbols` is
// replaced by the result.
class Merger {
 public:
  void run(const MergeTable& table, std::vector<int32_t>& symbols);

 private:
  struct Node {
    int32_t id;
    int32_t previous, next;  // -1: none
    bool alive;
  };
  struct Candidate {
    int32_t rank, position, result;
  };
  void run_short(const MergeTable& table, std::vector<int32_t>& symbols);
  void run_long(const MergeTable& table, std::vector<int32_t>& symbols);
  void push(const MergeTable& table, int32_t position);

  std::vector<MergeTable::Value> pairs_;
  std::vector<Node> nodes_;
  std::vector<Candidate> heap_;
};

}  // namespace hearth
