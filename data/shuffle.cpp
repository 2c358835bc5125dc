#include "data/shuffle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "data/open_files.h"
#include "data/shard_writer.h"
#include "data/workers.h"

namespace hearth {
namespace {

constexpr int64_t kShardOverheadBytes = 4 << 20;  // HDF5's own structures and block digests, generously

// Range `i` of `count` equal ranges of 64-bit keys holds the keys with range_of(key, count) == i.
int64_t range_of(uint64_t key, int64_t count) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((Wide{key} * static_cast<uint64_t>(count)) >> 64);
}

// Where the ranges begin in one run's index.
struct RunRanges {
  std::string path;
  int64_t entries_offset = 0, payload_offset = 0;
  std::vector<uint32_t> begins;  // [ranges + 1]
};

struct RangeSize {
  int64_t num_documents = 0, num_tokens = 0;
};

struct Layout {
  std::vector<RunRanges> runs;
  std::vector<RangeSize> ranges;
};

Layout lay_out(FileSystem& fs, const std::vector<std::string>& paths, size_t split, int64_t num_ranges) {
  Layout layout;
  layout.ranges.resize(static_cast<size_t>(num_ranges));
  for (const auto& path : paths) {
    const auto run = RunIndex::read(fs, path);
    HEARTH_CHECK(run != nullptr, Io, "{}: temporary file vanished or changed; run the same command again",
                 path);
    RunRanges& ranges =
        layout.runs.emplace_back(RunRanges{path, run->entries_offset(split), run->payload_offset(), {}});
    uint32_t index = 0;
    for (const RunEntry& entry : run->entries(split)) {
      const auto range = static_cast<size_t>(range_of(entry.key, num_ranges));
      ranges.begins.resize(std::max(ranges.begins.size(), range + 1), index);
      ++layout.ranges[range].num_documents;
      layout.ranges[range].num_tokens += entry.num_tokens;
      ++index;
    }
    ranges.begins.resize(static_cast<size_t>(num_ranges) + 1, index);
  }
  return layout;
}

struct Document {
  RunEntry entry;
  uint32_t run;
};

std::vector<Document> documents_of(OpenFiles& files, const Layout& layout, size_t range) {
  std::vector<Document> documents;
  documents.reserve(static_cast<size_t>(layout.ranges[range].num_documents));
  std::vector<RunEntry> entries;
  for (size_t r = 0; r < layout.runs.size(); ++r) {
    const RunRanges& run = layout.runs[r];
    entries.resize(run.begins[range + 1] - run.begins[range]);
    if (entries.empty()) continue;
    files.get(run.path)->read_at(
        run.entries_offset + int64_t{run.begins[range]} * static_cast<int64_t>(sizeof(RunEntry)),
        std::as_writable_bytes(std::span(entries)));
    for (const auto& entry : entries) documents.push_back({entry, static_cast<uint32_t>(r)});
  }
  std::sort(documents.begin(), documents.end(), [](const Document& a, const Document& b) {
    return std::tie(a.entry.key, a.entry.source, a.entry.ordinal) <
           std::tie(b.entry.key, b.entry.source, b.entry.ordinal);
  });
  return documents;
}

std::vector<int32_t> read_document(OpenFiles& files, const Layout& layout, const Document& document,
                                   int64_t width) {
  const RunRanges& run = layout.runs[document.run];
  std::vector<std::byte> raw(document.entry.num_tokens * static_cast<size_t>(width));
  files.get(run.path)->read_at(run.payload_offset + static_cast<int64_t>(document.entry.first) * width, raw);
  std::vector<int32_t> tokens(document.entry.num_tokens);
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::memcpy(&tokens[i], raw.data() + i * static_cast<size_t>(width), static_cast<size_t>(width));
  }
  return tokens;
}

ShardInfo write_shard(FileSystem& fs, const Layout& layout, size_t range, int64_t number,
                      const ShuffleOptions& options) {
  OpenFiles files(fs);
  const std::vector<Document> documents = documents_of(files, layout, range);
  std::vector<uint64_t> offsets{0};
  for (const auto& document : documents) offsets.push_back(offsets.back() + document.entry.num_tokens);
  ShardWriter writer(fs, {.directory = options.directory,
                          .file = fmt::format("shard-{:05d}.h5", number),
                          .attributes = options.attributes,
                          .document_offsets = std::move(offsets)});
  const int64_t width = token_bytes_for(options.attributes.vocab_size);
  for (const auto& document : documents) writer.append(read_document(files, layout, document, width));
  return writer.finish();
}

}  // namespace

std::vector<ShardInfo> write_shuffled_shards(FileSystem& fs, const std::vector<std::string>& runs,
                                             const ShuffleOptions& options,
                                             const std::function<void(int64_t)>& on_shard) {
  const int64_t width = token_bytes_for(options.attributes.vocab_size);
  const auto bytes_of = [&](const RangeSize& size) {
    return size.num_tokens * width + (size.num_documents + 1) * 8;
  };
  Layout layout = lay_out(fs, runs, options.split, 1);
  const int64_t total = bytes_of(layout.ranges[0]);
  if (layout.ranges[0].num_documents == 0) return {};
  int64_t num_ranges = (total + options.shard_bytes - 1) / options.shard_bytes;
  const auto too_large = [&](const RangeSize& size) {
    return size.num_documents > 1 && bytes_of(size) > kMaxShardBytes - kShardOverheadBytes;
  };
  // Keys are uniform, so ranges are of nearly equal size; a few huge documents may still crowd one.
  while (layout = lay_out(fs, runs, options.split, num_ranges),
         std::any_of(layout.ranges.begin(), layout.ranges.end(), too_large)) {
    num_ranges *= 2;
  }
  std::vector<size_t> filled;  // a few huge documents leave ranges empty
  for (size_t i = 0; i < layout.ranges.size(); ++i) {
    if (layout.ranges[i].num_documents > 0) filled.push_back(i);
  }
  std::vector<ShardInfo> shards(filled.size());
  run_tasks(options.num_threads, static_cast<int64_t>(filled.size()), [&](int64_t i) {
    auto& shard = shards[static_cast<size_t>(i)];
    shard = write_shard(fs, layout, filled[static_cast<size_t>(i)], options.first_shard + i, options);
    if (on_shard) on_shard(shard.num_tokens);
  });
  return shards;
}

}  // namespace hearth
