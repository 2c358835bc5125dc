// One shard: an HDF5 file of tokens, read without HDF5 on the hot path. The format is written down in
// data/README.md. open() checks size and metadata digest before the HDF5 library sees the file, then asks
// HDF5 where the arrays lie; from then on only pread. Everything that is not exactly our format is
// Error{BadInput} with the shard's name. Const members are thread-safe: several loader threads share one
// Shard.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

inline constexpr int64_t kShardFormatVersion = 1;
inline constexpr int64_t kTokenBlockBytes = 64 << 10;        // digested as one
inline constexpr int64_t kMaxShardBytes = int64_t{1} << 30;  // so that a digest costs well under a second

// Where one array lies in the file.
struct ByteExtent {
  int64_t offset = 0;
  int64_t size_bytes = 0;
  bool operator==(const ByteExtent&) const = default;
};

// What dataset.json says about a shard; everything here is checked against the file.
struct ShardInfo {
  std::string file;  // a plain name inside the dataset's folder
  int64_t size_bytes = 0;
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t token_bytes = 0;       // 2 or 4
  std::string digest;            // XXH3-128 of the file; checked by verify only
  std::string metadata_digest;   // XXH3-128 of all bytes outside the extents below; checked at open
  std::string documents_digest;  // XXH3-128 of /documents/offset; checked when boundaries are first needed
  ByteExtent tokens, documents;
  std::optional<ByteExtent> loss_mask, segments;
  bool operator==(const ShardInfo&) const = default;
};

// Attributes of the HDF5 root group.
struct ShardAttributes {
  int64_t format_version = kShardFormatVersion;
  std::string tokenizer_digest;
  int64_t vocab_size = 0;
  int64_t eos_id = -1;  // -1: the tokenizer has none
  std::string source_digest;
  bool operator==(const ShardAttributes&) const = default;
};

class Shard {
 public:
  // Checks the file's size and metadata digest. `directory`/info.file must be a regular file, not a link.
  static std::unique_ptr<Shard> open(FileSystem& fs, const std::string& directory, const ShardInfo& info,
                                     const ShardAttributes& expected);
  ~Shard();

  const ShardInfo& info() const { return info_; }
  const std::string& path() const { return path_; }
  int64_t num_tokens() const { return info_.num_tokens; }
  int64_t num_documents() const { return info_.num_documents; }
  int64_t num_blocks() const;

  // Tokens [first, first + out.size()). A block is checked against its digest the first time this process
  // reads it, ids against the vocabulary every time; Error{BadInput} names shard and block.
  void read_tokens(int64_t first, std::span<int32_t> out) const;
  // 1 = the token counts as a target; all ones where the shard has no /loss_mask.
  void read_loss_mask(int64_t first, std::span<uint8_t> out) const;
  // Positions in [first, first + count) where a document (or a segment) begins, relative to `first`,
  // ascending.
  std::vector<int32_t> boundaries(int64_t first, int64_t count) const;
  // Token range [begin, end) of document `index`.
  std::pair<int64_t, int64_t> document_range(int64_t index) const;

  // Full check for `verify`: file digest, every block digest, every id, document offsets. Reads the whole
  // file.
  void verify_all() const;

 private:
  Shard(FileSystem& fs, std::string path, const ShardInfo& info, const ShardAttributes& expected);
  class Offsets;
  struct OpenOnce;
  const OpenOnce& ready() const;  // opens through HDF5 at first use
  const Offsets& document_offsets() const;
  void check_block(int64_t block, std::span<const std::byte> bytes) const;
  void read_raw_tokens(int64_t first, std::span<std::byte> out) const;
  std::string metadata_digest() const;

  FileSystem& fs_;
  std::string path_;
  ShardInfo info_;
  ShardAttributes expected_;
  std::unique_ptr<ReadableFile> file_;
  std::unique_ptr<OpenOnce> once_;
};

}  // namespace hearth
