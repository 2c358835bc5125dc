// Intermediate files of `data prepare`: the documents of one unit of work, tokenised and sorted by shuffle
// key, with an index. Any range of keys can be read from it, which is how documents of all units meet in a
// shard (the shuffle of MapReduce, Dean and Ghemawat 2004). An entry is what must stay together: one
// document, or the two of a preference pair. Private to data/: the format may change with every version.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

inline constexpr size_t kNumSplits = 2;  // 0 training (or everything), 1 validation

struct RunEntry {
  uint64_t key = 0;      // entries are written in ascending order of (key, source, ordinal)
  uint64_t ordinal = 0;  // within the source
  uint64_t first = 0;    // token offset in the file's payload
  uint32_t num_tokens = 0;
  uint32_t num_second = 0;  // of these, at the end, tokens of the pair's second document; 0: one document
  uint32_t source = 0;
  uint32_t unused = 0;
  int64_t num_documents() const { return num_second > 0 ? 2 : 1; }
};

struct RunCounts {  // what one source contributed to the unit
  int64_t source = 0;
  int64_t num_documents[kNumSplits] = {0, 0};
  int64_t num_skipped = 0;    // bad lines
  int64_t num_empty = 0;      // documents without text
  int64_t num_cut = 0;        // documents longer than a bin: cut
  int64_t num_dropped = 0;    // documents longer than a bin: left out
  int64_t num_untrained = 0;  // documents without a token that is learnt
};

struct RunHeader {
  uint64_t magic = 0;
  uint64_t digest = 0;  // XXH3-64 of everything before the payload, with this field 0
  uint64_t token_bytes = 0;
  uint64_t has_loss_mask = 0;  // 1: behind the tokens stands one byte per token
  uint64_t num_entries[kNumSplits] = {0, 0};
  uint64_t num_tokens[kNumSplits] = {0, 0};
  uint64_t num_counts = 0;
};

// Collects the documents of one unit in memory. Not thread-safe.
class RunBuilder {
 public:
  // entry.first and num_tokens are set here. `loss_mask`: as many as tokens, or none for all entries.
  void add(size_t split, RunEntry entry, std::span<const int32_t> tokens,
           std::span<const uint8_t> loss_mask = {});
  RunCounts& counts(int64_t source);
  // Writes to `path` by temporary name, fsync and rename: a file with the name is whole.
  void write(FileSystem& fs, const std::string& path, int64_t token_bytes);
  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  std::vector<RunEntry> entries_[kNumSplits];
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> loss_mask_;
  std::vector<RunCounts> counts_;
};

// Header, counts and index of a run; the payload stays in the file. Immutable, thread-safe.
class RunIndex {
 public:
  // nullptr where the file is missing or not a whole run of this version: the unit is then done again.
  static std::unique_ptr<RunIndex> read(FileSystem& fs, const std::string& path);
  const RunHeader& header() const { return header_; }
  const std::vector<RunCounts>& counts() const { return counts_; }
  std::span<const RunEntry> entries(size_t split) const;
  int64_t entries_offset(size_t split) const;  // bytes from the file's begin
  int64_t payload_offset() const;
  int64_t loss_mask_offset() const;  // of the first token's byte

 private:
  RunHeader header_;
  std::vector<RunCounts> counts_;
  std::vector<RunEntry> entries_;  // of split 0, then of split 1
};

}  // namespace hearth
