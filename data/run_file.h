// Intermediate files of `data prepare`: the documents of one unit of work, tokenised and sorted by shuffle
// key, with an index. Any range of keys can be read from it, which is how documents of all units meet in a
// shard (the shuffle of MapReduce, Dean and Ghemawat 2004). Private to data/: the format may change with
// every version.
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
  uint64_t key = 0;      // documents are written in ascending order of (key, source, ordinal)
  uint64_t ordinal = 0;  // within the source
  uint64_t first = 0;    // token offset in the file's payload
  uint32_t num_tokens = 0;
  uint32_t source = 0;
};

struct RunCounts {  // what one source contributed to the unit
  int64_t source = 0;
  int64_t num_documents[kNumSplits] = {0, 0};
  int64_t num_skipped = 0;  // bad lines
  int64_t num_empty = 0;    // documents without text
};

struct RunHeader {
  uint64_t magic = 0;
  uint64_t digest = 0;  // XXH3-64 of everything before the payload, with this field 0
  uint64_t token_bytes = 0;
  uint64_t num_entries[kNumSplits] = {0, 0};
  uint64_t num_tokens[kNumSplits] = {0, 0};
  uint64_t num_counts = 0;
};

// Collects the documents of one unit in memory. Not thread-safe.
class RunBuilder {
 public:
  void add(size_t split, RunEntry entry,
           std::span<const int32_t> tokens);  // entry.first and num_tokens are set here
  RunCounts& counts(int64_t source);
  // Writes to `path` by temporary name, fsync and rename: a file with the name is whole.
  void write(FileSystem& fs, const std::string& path, int64_t token_bytes);
  int64_t num_documents() const { return static_cast<int64_t>(entries_[0].size() + entries_[1].size()); }
  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  std::vector<RunEntry> entries_[kNumSplits];
  std::vector<int32_t> tokens_;
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

 private:
  RunHeader header_;
  std::vector<RunCounts> counts_;
  std::vector<RunEntry> entries_;  // of split 0, then of split 1
};

}  // namespace hearth
