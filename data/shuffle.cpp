#include "data/shuffle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "data/open_files.h"
#include "data/packing.h"
#include "data/permutation.h"
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
  int64_t entries_offset = 0, payload_offset = 0, loss_mask_offset = 0;
  std::vector<uint32_t> begins;  // [ranges + 1]
};

struct RangeSize {
  int64_t num_entries = 0, num_documents = 0, num_tokens = 0;
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
    RunRanges& ranges = layout.runs.emplace_back(
        RunRanges{path, run->entries_offset(split), run->payload_offset(), run->loss_mask_offset(), {}});
    uint32_t index = 0;
    for (const RunEntry& entry : run->entries(split)) {
      const auto range = static_cast<size_t>(range_of(entry.key, num_ranges));
      ranges.begins.resize(std::max(ranges.begins.size(), range + 1), index);
      layout.ranges[range].num_documents += entry.num_documents();
      ++layout.ranges[range].num_entries;
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
  documents.reserve(static_cast<size_t>(layout.ranges[range].num_entries));
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

std::vector<uint8_t> read_loss_mask(OpenFiles& files, const Layout& layout, const Document& document) {
  const RunRanges& run = layout.runs[document.run];
  std::vector<uint8_t> mask(document.entry.num_tokens);
  files.get(run.path)->read_at(run.loss_mask_offset + static_cast<int64_t>(document.entry.first),
                               std::as_writable_bytes(std::span(mask)));
  return mask;
}

// A document, and how much padding stands behind it.
struct Placed {
  Document document;
  int64_t padding = 0;
};

std::vector<Placed> place(std::vector<Document> documents, int64_t pack_length) {
  std::vector<Placed> placed;
  placed.reserve(documents.size());
  if (pack_length == 0) {
    for (const auto& document : documents) placed.push_back({document});
    return placed;
  }
  std::vector<uint32_t> lengths;
  for (const auto& document : documents) lengths.push_back(document.entry.num_tokens);
  auto bins = pack_best_fit(lengths, checked_cast<uint32_t>(pack_length));
  // Bins come in the order of their first documents. That order would put full bins of early documents first,
  // so it is shuffled once more.
  const auto bin_key = [&](const std::vector<uint32_t>& bin) {
    return std::pair(mix64(documents[bin.front()].entry.key + 1), bin.front());
  };
  std::sort(bins.begin(), bins.end(), [&](const auto& a, const auto& b) { return bin_key(a) < bin_key(b); });
  for (const auto& bin : bins) {
    int64_t left = pack_length;
    for (const uint32_t i : bin) {
      placed.push_back({documents[i]});
      left -= documents[i].entry.num_tokens;
    }
    placed.back().padding = left;
  }
  ++placed.back().padding;
  return placed;
}

ShardInfo write_shard(FileSystem& fs, const Layout& layout, size_t range, int64_t number,
                      const ShuffleOptions& options) {
  OpenFiles files(fs);
  const auto documents = place(documents_of(files, layout, range), options.pack_length);
  std::vector<uint64_t> offsets{0};
  for (const auto& [document, padding] : documents) {
    const RunEntry& entry = document.entry;
    if (entry.num_second > 0) offsets.push_back(offsets.back() + entry.num_tokens - entry.num_second);
    const uint64_t last = entry.num_second > 0 ? entry.num_second : entry.num_tokens;
    offsets.push_back(offsets.back() + last + static_cast<uint64_t>(padding));
  }
  ShardWriter writer(fs, {.directory = options.directory,
                          .file = fmt::format("shard-{:05d}.h5", number),
                          .attributes = options.attributes,
                          .document_offsets = std::move(offsets),
                          .has_loss_mask = options.has_loss_mask});
  const int64_t width = token_bytes_for(options.attributes.vocab_size);
  for (const auto& [document, padding] : documents) {
    const auto tokens = read_document(files, layout, document, width);
    if (!options.has_loss_mask) {
      writer.append(tokens);
      continue;
    }
    writer.append(tokens, read_loss_mask(files, layout, document));
    if (padding > 0) writer.append_padding(options.padding_id, padding);
  }
  return writer.finish();
}

}  // namespace

std::vector<ShardInfo> write_shuffled_shards(FileSystem& fs, const std::vector<std::string>& runs,
                                             const ShuffleOptions& options,
                                             const std::function<void(int64_t)>& on_shard) {
  const int64_t width = token_bytes_for(options.attributes.vocab_size);
  // Of two bins at most one is less than half full, so bins hold at most twice the tokens and one bin more.
  const auto bytes_of = [&](const RangeSize& size) {
    const int64_t tokens =
        options.pack_length == 0 ? size.num_tokens : 2 * size.num_tokens + options.pack_length + 1;
    return tokens * (width + (options.has_loss_mask ? 1 : 0)) + (size.num_documents + 1) * 8;
  };
  Layout layout = lay_out(fs, runs, options.split, 1);
  const int64_t total = bytes_of(layout.ranges[0]);
  if (layout.ranges[0].num_documents == 0) return {};
  int64_t num_ranges = (total + options.shard_bytes - 1) / options.shard_bytes;
  const auto too_large = [&](const RangeSize& size) {
    return size.num_entries > 1 && bytes_of(size) > kMaxShardBytes - kShardOverheadBytes;
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
    if (on_shard) on_shard(shard.num_tokens - shard.num_padding_tokens.value_or(0));
  });
  return shards;
}

}  // namespace hearth
