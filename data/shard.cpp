#include "data/shard.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>

#include "base/error.h"
#include "base/hash.h"
#include "data/open_files.h"
#include "data/shard_layout.h"

namespace hearth {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and read in place");

constexpr int64_t kPieceBytes = 1 << 20;
constexpr int64_t kMaxMetadataBytes = 16 << 20;  // block digests of a 1 GiB shard take 128 KiB
constexpr int64_t kSparseStep = 512;             // offsets per entry of the sparse index: one 4 KiB page

void hash_range(const ReadableFile& file, int64_t begin, int64_t end, Xxh3Stream& digest) {
  std::vector<std::byte> piece(static_cast<size_t>(std::min(kPieceBytes, end - begin)));
  for (int64_t at = begin; at < end;) {
    const auto size = static_cast<size_t>(std::min<int64_t>(kPieceBytes, end - at));
    file.read_at(at, std::span(piece).first(size));
    digest.update(std::span<const std::byte>(piece).first(size));
    at += static_cast<int64_t>(size);
  }
}

}  // namespace

std::string file_digest(const ReadableFile& file) {
  Xxh3Stream digest;
  hash_range(file, 0, file.size(), digest);
  return digest.hex128();
}

std::string shard_metadata_digest(const ReadableFile& file, const ShardInfo& info, const std::string& path) {
  std::vector<ByteExtent> arrays{info.tokens, info.documents};
  if (info.loss_mask) arrays.push_back(*info.loss_mask);
  if (info.segments) arrays.push_back(*info.segments);
  std::sort(arrays.begin(), arrays.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
  arrays.push_back({file.size(), 0});
  Xxh3Stream digest;
  int64_t at = 0, metadata_bytes = 0;
  for (const ByteExtent& array : arrays) {
    HEARTH_CHECK(
        array.offset >= at && array.size_bytes >= 0 && array.size_bytes <= file.size() - array.offset,
        BadInput,
        "{}: dataset.json puts an array of {} bytes at {}, which overlaps another or leaves the file of {} "
        "bytes",
        path, array.size_bytes, array.offset, file.size());
    metadata_bytes += array.offset - at;
    HEARTH_CHECK(metadata_bytes <= kMaxMetadataBytes, BadInput, "{}: more than {} bytes outside its arrays",
                 path, kMaxMetadataBytes);
    hash_range(file, at, array.offset, digest);
    at = array.offset + array.size_bytes;
  }
  return digest.hex128();
}

struct Shard::Lazy {
  std::once_flag open_once, index_once;
  std::vector<uint64_t> block_digests;
  std::vector<std::atomic<uint64_t>> checked;  // one bit per block that matched its digest in this process
  std::vector<uint64_t> documents, segments;   // every kSparseStep-th entry of the offset arrays
  bool is_checked(int64_t block) const {
    return (checked[static_cast<size_t>(block / 64)].load(std::memory_order_relaxed) >> (block % 64)) & 1;
  }
  // Relaxed: the bit only saves work; a thread that misses it checks the block once more.
  void set_checked(int64_t block) {
    checked[static_cast<size_t>(block / 64)].fetch_or(uint64_t{1} << (block % 64), std::memory_order_relaxed);
  }
};

Shard::Shard(OpenFiles& files, std::string path, const ShardInfo& info, const ShardAttributes& expected)
    : files_(files),
      path_(std::move(path)),
      info_(info),
      expected_(expected),
      lazy_(std::make_unique<Lazy>()) {}
Shard::~Shard() = default;

std::unique_ptr<Shard> Shard::open(OpenFiles& files, const std::string& directory, const ShardInfo& info,
                                   const ShardAttributes& expected) {
  const std::string path = directory + "/" + info.file;
  HEARTH_CHECK(!files.fs().is_symlink(path), BadInput,
               "{}: is a link; a dataset's shards are regular files inside its folder", path);
  HEARTH_CHECK(files.fs().exists(path), BadInput,
               "{}: shard is missing, though dataset.json lists it; restore it or prepare the dataset again",
               path);
  const auto file = files.get(path);
  HEARTH_CHECK(file->size() == info.size_bytes, BadInput, "{}: has {} bytes, dataset.json says {}", path,
               file->size(), info.size_bytes);
  const std::string digest = shard_metadata_digest(*file, info, path);
  HEARTH_CHECK(digest == info.metadata_digest, BadInput,
               "{}: metadata digest is {}, dataset.json says {}; the file changed", path, digest,
               info.metadata_digest);
  return std::unique_ptr<Shard>(new Shard(files, path, info, expected));
}

const Shard::Lazy& Shard::opened() const {
  std::call_once(lazy_->open_once, [this] { open_layout(); });
  return *lazy_;
}

const Shard::Lazy& Shard::indexed() const {
  opened();
  std::call_once(lazy_->index_once, [this] {
    std::string digest;
    index_offsets(info_.documents, lazy_->documents, &digest);
    HEARTH_CHECK(digest == info_.documents_digest, BadInput,
                 "{}: digest of /documents/offset is {}, dataset.json says {}", path_, digest,
                 info_.documents_digest);
    if (info_.segments) index_offsets(*info_.segments, lazy_->segments, nullptr);
  });
  return *lazy_;
}

// HDF5's answers must agree with dataset.json, which was checked against the raw bytes before.
void Shard::open_layout() const {
  ShardLayout layout = read_shard_layout(path_, info_.size_bytes);
  HEARTH_CHECK(
      layout.tokens == info_.tokens && layout.documents == info_.documents &&
          layout.loss_mask == info_.loss_mask && layout.segments == info_.segments &&
          layout.token_bytes == info_.token_bytes,
      BadInput,
      "{}: HDF5 places its arrays elsewhere than dataset.json (tokens at {} with {} bytes, said {} with {})",
      path_, layout.tokens.offset, layout.tokens.size_bytes, info_.tokens.offset, info_.tokens.size_bytes);
  const ShardAttributes& seen = layout.attributes;
  HEARTH_CHECK(seen.format_version == expected_.format_version, BadInput,
               "{}: shard format version {} is not the supported {}", path_, seen.format_version,
               expected_.format_version);
  HEARTH_CHECK(seen.tokenizer_digest == expected_.tokenizer_digest &&
                   seen.vocab_size == expected_.vocab_size && seen.eos_id == expected_.eos_id,
               BadInput,
               "{}: was made with tokenizer {} (vocabulary {}, eos {}), the dataset with {} ({}, {})", path_,
               seen.tokenizer_digest, seen.vocab_size, seen.eos_id, expected_.tokenizer_digest,
               expected_.vocab_size, expected_.eos_id);
  lazy_->block_digests = std::move(layout.block_digests);
  lazy_->checked = std::vector<std::atomic<uint64_t>>(static_cast<size_t>(num_blocks() / 64 + 1));
}

void Shard::read_at(int64_t offset, std::span<std::byte> out) const {
  files_.get(path_)->read_at(offset, out);
}

void Shard::check_block(int64_t block, std::span<const std::byte> bytes) const {
  const uint64_t want = lazy_->block_digests[static_cast<size_t>(block)], got = xxh3_64(bytes);
  HEARTH_CHECK(got == want, BadInput,
               "{}: block {} (tokens {} to {}) has digest {:016x}, the shard says {:016x}; the file is "
               "damaged: restore it "
               "or prepare the dataset again",
               path_, block, block * kTokenBlockBytes / info_.token_bytes,
               (block * kTokenBlockBytes + static_cast<int64_t>(bytes.size())) / info_.token_bytes - 1, got,
               want);
  lazy_->set_checked(block);
}

// Bytes [offset, offset + out.size()) of the token array; unchecked blocks are read whole and checked.
void Shard::read_token_bytes(int64_t offset, std::span<std::byte> out) const {
  const Lazy& lazy = opened();
  const int64_t end = offset + static_cast<int64_t>(out.size());
  const int64_t first_block = offset / kTokenBlockBytes, last_block = (end - 1) / kTokenBlockBytes;
  bool all_checked = true;
  for (int64_t block = first_block; block <= last_block; ++block)
    all_checked = all_checked && lazy.is_checked(block);
  if (all_checked) return read_at(info_.tokens.offset + offset, out);
  std::vector<std::byte> bytes(static_cast<size_t>(kTokenBlockBytes));
  for (int64_t block = first_block; block <= last_block; ++block) {
    const int64_t begin = block * kTokenBlockBytes;
    const int64_t size = std::min(kTokenBlockBytes, info_.tokens.size_bytes - begin);
    const auto whole = std::span(bytes).first(static_cast<size_t>(size));
    read_at(info_.tokens.offset + begin, whole);
    if (!lazy.is_checked(block)) check_block(block, whole);
    const int64_t from = std::max(offset, begin), to = std::min(end, begin + size);
    std::memcpy(out.data() + (from - offset), whole.data() + (from - begin), static_cast<size_t>(to - from));
  }
}

void Shard::read_tokens(int64_t first, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  HEARTH_ASSERT(first >= 0 && count > 0 && first <= info_.num_tokens - count);
  const auto width = static_cast<size_t>(info_.token_bytes);
  std::vector<std::byte> raw(out.size() * width);
  read_token_bytes(first * info_.token_bytes, raw);
  const auto bad_id = [&](int64_t at, int64_t id) {
    const int64_t token = first + at;
    fail(ErrorKind::BadInput, "{}: block {}: token {} has id {}, beyond the vocabulary of {}", path_,
         token * info_.token_bytes / kTokenBlockBytes, token, id, expected_.vocab_size);
  };
  for (size_t i = 0; i < out.size(); ++i) {
    uint32_t id = 0;
    std::memcpy(&id, raw.data() + i * width, width);
    if (id >= expected_.vocab_size) bad_id(static_cast<int64_t>(i), id);
    out[i] = static_cast<int32_t>(id);
  }
}

void Shard::read_loss_mask(int64_t first, std::span<uint8_t> out) const {
  opened();
  HEARTH_ASSERT(first >= 0 && first <= info_.num_tokens - static_cast<int64_t>(out.size()));
  if (!info_.loss_mask) return std::fill(out.begin(), out.end(), uint8_t{1}), void();
  read_at(info_.loss_mask->offset + first, std::as_writable_bytes(out));
  for (size_t i = 0; i < out.size(); ++i) {
    HEARTH_CHECK(out[i] <= 1, BadInput, "{}: /loss_mask[{}] is {}, expected 0 or 1", path_,
                 first + static_cast<int64_t>(i), out[i]);
  }
}

// Reads an ascending array of token positions once: checks it, digests it, keeps every kSparseStep-th entry.
void Shard::index_offsets(const ByteExtent& extent, std::vector<uint64_t>& sparse,
                          std::string* digest) const {
  const int64_t count = extent.size_bytes / 8;
  std::vector<uint64_t> piece(static_cast<size_t>(std::min<int64_t>(count, kPieceBytes / 8)));
  Xxh3Stream stream;
  uint64_t previous = 0;
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(piece.size())) {
    piece.resize(static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(piece.size()), count - at)));
    read_at(extent.offset + at * 8, std::as_writable_bytes(std::span(piece)));
    stream.update(std::as_bytes(std::span(piece)));
    for (size_t i = 0; i < piece.size(); ++i) {
      const int64_t index = at + static_cast<int64_t>(i);
      HEARTH_CHECK((index == 0 || piece[i] > previous) && piece[i] <= static_cast<uint64_t>(info_.num_tokens),
                   BadInput, "{}: boundary {} is {} after {}; expected ascending positions up to {}", path_,
                   index, piece[i], previous, info_.num_tokens);
      previous = piece[i];
      if (index == 0)
        HEARTH_CHECK(piece[i] == 0, BadInput, "{}: the first document begins at {}, not 0", path_, piece[i]);
      if (index % kSparseStep == 0) sparse.push_back(piece[i]);
    }
  }
  HEARTH_CHECK(previous == static_cast<uint64_t>(info_.num_tokens) || digest == nullptr, BadInput,
               "{}: the last document ends at {}, the shard has {} tokens", path_, previous,
               info_.num_tokens);
  if (digest != nullptr) *digest = stream.hex128();
}

void Shard::append_starts(const ByteExtent& extent, const std::vector<uint64_t>& sparse, int64_t first,
                          int64_t count, std::vector<int32_t>& out) const {
  const auto begin = static_cast<uint64_t>(first), end = static_cast<uint64_t>(first + count);
  const auto after = std::lower_bound(sparse.begin(), sparse.end(), begin);
  int64_t page = std::max<int64_t>(0, after - sparse.begin() - 1);
  std::vector<uint64_t> entries;
  for (; page < static_cast<int64_t>(sparse.size()) && sparse[static_cast<size_t>(page)] < end; ++page) {
    const int64_t at = page * kSparseStep;
    entries.resize(static_cast<size_t>(std::min(kSparseStep, extent.size_bytes / 8 - at)));
    read_at(extent.offset + at * 8, std::as_writable_bytes(std::span(entries)));
    for (const uint64_t entry : entries) {
      if (entry >= begin && entry < end) out.push_back(static_cast<int32_t>(entry - begin));
    }
  }
}

std::vector<int32_t> Shard::boundaries(int64_t first, int64_t count) const {
  HEARTH_ASSERT(first >= 0 && count >= 0 && count <= INT32_MAX && first <= info_.num_tokens - count);
  const Lazy& lazy = indexed();
  std::vector<int32_t> starts;
  append_starts(info_.documents, lazy.documents, first, count, starts);
  if (info_.segments) {
    append_starts(*info_.segments, lazy.segments, first, count, starts);
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  }
  return starts;
}

std::pair<int64_t, int64_t> Shard::document_range(int64_t index) const {
  HEARTH_ASSERT(index >= 0 && index < info_.num_documents);
  indexed();
  std::array<uint64_t, 2> range{};
  read_at(info_.documents.offset + index * 8, std::as_writable_bytes(std::span(range)));
  return {static_cast<int64_t>(range[0]), static_cast<int64_t>(range[1])};
}

void Shard::verify_all() const {
  indexed();
  const int64_t per_block = kTokenBlockBytes / info_.token_bytes;
  std::vector<int32_t> tokens;
  std::vector<std::byte> bytes;
  for (int64_t block = 0; block < num_blocks(); ++block) {
    const int64_t first = block * per_block;
    tokens.resize(static_cast<size_t>(std::min(per_block, info_.num_tokens - first)));
    bytes.resize(tokens.size() * static_cast<size_t>(info_.token_bytes));
    read_at(info_.tokens.offset + first * info_.token_bytes, bytes);
    check_block(block, bytes);  // also where the bit says that it was checked before
    read_tokens(first, tokens);
  }
  std::vector<uint8_t> mask(static_cast<size_t>(kPieceBytes));
  int64_t trained = 0;
  for (int64_t at = 0; info_.loss_mask && at < info_.num_tokens; at += kPieceBytes) {
    const auto piece =
        std::span(mask).first(static_cast<size_t>(std::min(kPieceBytes, info_.num_tokens - at)));
    read_loss_mask(at, piece);
    trained += std::count(piece.begin(), piece.end(), uint8_t{1});
  }
  HEARTH_CHECK(!info_.num_trained_tokens || trained == *info_.num_trained_tokens, BadInput,
               "{}: /loss_mask has {} ones, dataset.json says {}", path_, trained, *info_.num_trained_tokens);
  const std::string digest = file_digest(*files_.get(path_));
  HEARTH_CHECK(digest == info_.digest, BadInput, "{}: file digest is {}, dataset.json says {}", path_, digest,
               info_.digest);
}

}  // namespace hearth
