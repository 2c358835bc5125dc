#include "data/run_file.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "base/hash.h"

namespace hearth {
namespace {

constexpr uint64_t kMagic = 0x326e7572'68747268;  // "hrthrun2"

// All bytes before the payload, in file order.
std::vector<std::byte> front_bytes(const RunHeader& header, std::span<const RunCounts> counts,
                                   std::span<const RunEntry> entries) {
  std::vector<std::byte> bytes;
  for (const auto part :
       {std::as_bytes(std::span(&header, 1)), std::as_bytes(counts), std::as_bytes(entries)}) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

uint64_t front_digest(RunHeader header, std::span<const RunCounts> counts,
                      std::span<const RunEntry> entries) {
  header.digest = 0;
  return xxh3_64(front_bytes(header, counts, entries));
}

bool before(const RunEntry& a, const RunEntry& b) {
  return std::tie(a.key, a.source, a.ordinal) < std::tie(b.key, b.source, b.ordinal);
}

}  // namespace

void RunBuilder::add(size_t split, RunEntry entry, std::span<const int32_t> tokens,
                     std::span<const uint8_t> loss_mask) {
  entry.first = tokens_.size();
  entry.num_tokens = checked_cast<uint32_t>(tokens.size());
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  loss_mask_.insert(loss_mask_.end(), loss_mask.begin(), loss_mask.end());
  HEARTH_ASSERT(loss_mask_.empty() || loss_mask_.size() == tokens_.size());
  entries_[split].push_back(entry);
  counts(entry.source).num_documents[split] += entry.num_documents();
}

RunCounts& RunBuilder::counts(int64_t source) {
  if (counts_.empty() || counts_.back().source != source) counts_.push_back({.source = source});
  return counts_.back();
}

void RunBuilder::write(FileSystem& fs, const std::string& path, int64_t token_bytes) {
  RunHeader header{.magic = kMagic,
                   .token_bytes = static_cast<uint64_t>(token_bytes),
                   .has_loss_mask = loss_mask_.empty() ? uint64_t{0} : uint64_t{1},
                   .num_counts = counts_.size()};
  std::vector<RunEntry> index;
  std::vector<std::byte> payload, mask;
  payload.reserve(tokens_.size() * static_cast<size_t>(token_bytes));
  uint64_t placed = 0;
  for (size_t split = 0; split < kNumSplits; ++split) {
    auto& entries = entries_[split];
    std::sort(entries.begin(), entries.end(), before);
    header.num_entries[split] = entries.size();
    for (RunEntry entry : entries) {
      for (size_t i = 0; i < entry.num_tokens; ++i) {
        const auto* bytes = reinterpret_cast<const std::byte*>(&tokens_[entry.first + i]);
        payload.insert(payload.end(), bytes, bytes + token_bytes);  // little-endian: the low bytes come first
        if (!loss_mask_.empty()) mask.push_back(std::byte{loss_mask_[entry.first + i]});
      }
      entry.first = placed;
      placed += entry.num_tokens;
      header.num_tokens[split] += entry.num_tokens;
      index.push_back(entry);
    }
  }
  header.digest = front_digest(header, counts_, index);
  const std::string temporary = path + ".tmp";
  const auto file = fs.create(temporary, CreateMode::Truncate);
  file->write(front_bytes(header, counts_, index));
  file->write(payload);
  if (!mask.empty()) file->write(mask);
  file->sync();  // a file under the final name must be whole even after a power failure
  file->close();
  fs.rename(temporary, path);
}

std::unique_ptr<RunIndex> RunIndex::read(FileSystem& fs, const std::string& path) {
  if (!fs.exists(path)) return nullptr;
  const auto file = fs.open(path);
  auto run = std::make_unique<RunIndex>();
  RunHeader& header = run->header_;
  const auto size = static_cast<uint64_t>(file->size());
  if (size < sizeof(header)) return nullptr;
  file->read_at(0, std::as_writable_bytes(std::span(&header, 1)));
  const uint64_t limit = size / sizeof(RunEntry) + 1;  // bounds the sums below
  const bool plausible = header.magic == kMagic && (header.token_bytes == 2 || header.token_bytes == 4) &&
                         header.has_loss_mask <= 1 && header.num_counts <= limit &&
                         header.num_entries[0] <= limit && header.num_entries[1] <= limit &&
                         header.num_tokens[0] <= size && header.num_tokens[1] <= size;
  if (!plausible) return nullptr;
  const uint64_t num_entries = header.num_entries[0] + header.num_entries[1];
  const uint64_t wanted =
      sizeof(header) + header.num_counts * sizeof(RunCounts) + num_entries * sizeof(RunEntry) +
      (header.num_tokens[0] + header.num_tokens[1]) * (header.token_bytes + header.has_loss_mask);
  if (size != wanted) return nullptr;
  run->counts_.resize(header.num_counts);
  run->entries_.resize(num_entries);
  file->read_at(sizeof(header), std::as_writable_bytes(std::span(run->counts_)));
  file->read_at(static_cast<int64_t>(sizeof(header) + header.num_counts * sizeof(RunCounts)),
                std::as_writable_bytes(std::span(run->entries_)));
  if (front_digest(header, run->counts_, run->entries_) != header.digest) return nullptr;
  return run;
}

std::span<const RunEntry> RunIndex::entries(size_t split) const {
  const std::span all(entries_);
  return split == 0 ? all.first(header_.num_entries[0]) : all.subspan(header_.num_entries[0]);
}

int64_t RunIndex::entries_offset(size_t split) const {
  const uint64_t before_split = split == 0 ? 0 : header_.num_entries[0];
  return static_cast<int64_t>(sizeof(header_) + counts_.size() * sizeof(RunCounts) +
                              before_split * sizeof(RunEntry));
}

int64_t RunIndex::payload_offset() const {
  return static_cast<int64_t>(sizeof(header_) + counts_.size() * sizeof(RunCounts) +
                              entries_.size() * sizeof(RunEntry));
}

int64_t RunIndex::loss_mask_offset() const {
  return payload_offset() +
         static_cast<int64_t>((header_.num_tokens[0] + header_.num_tokens[1]) * header_.token_bytes);
}

}  // namespace hearth
