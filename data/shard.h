// One shard: an HDF5 file of tokens, read without HDF5 on the hot path. The format is written down in
// data/README.md. open() checks size and metadata digest before the HDF5 library sees the file, then asks
// HDF5 where the arrays lie; from then on only pread. Everything that is not exactly our format is
// Error{BadInput} with the shard's name. Const members are thread-safe: several loader threads share one
// Shard.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
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
  std::optional<int64_t> num_trained_tokens;  // ones in /loss_mask; checked by verify
  std::optional<int64_t> num_padding_tokens;  // behind the last document of each bin
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

class OpenFiles;
struct ShardLayout;

class Shard {
 public:
  // Checks the file's size and metadata digest. `directory`/info.file must be a regular file, not a link.
  // `files` opens it and must outlive the shard.
  static std::unique_ptr<Shard> open(OpenFiles& files, const std::string& directory, const ShardInfo& info,
                                     const ShardAttributes& expected);
  ~Shard();

  const ShardInfo& info() const { return info_; }
  const std::string& path() const { return path_; }
  int64_t num_tokens() const { return info_.num_tokens; }
  int64_t num_documents() const { return info_.num_documents; }
  int64_t num_blocks() const { return (info_.tokens.size_bytes + kTokenBlockBytes - 1) / kTokenBlockBytes; }

  // Tokens [first, first + out.size()). A block is checked against its digest the first time this process
  // reads it, ids against the vocabulary every time; Error{BadInput} names shard and block.
  void read_tokens(int64_t first, std::span<int32_t> out) const;
  // 1 = the token counts as a target; all ones where the shard has no /loss_mask.
  bool has_loss_mask() const { return info_.loss_mask.has_value(); }
  void read_loss_mask(int64_t first, std::span<uint8_t> out) const;
  // Positions in [first, first + count) where a document (or a segment) begins, relative to `first`,
  // ascending.
  std::vector<int32_t> boundaries(int64_t first, int64_t count) const;
  // Token range [begin, end) of document `index`.
  std::pair<int64_t, int64_t> document_range(int64_t index) const;

  // Full check for `verify`: every block digest and id, document offsets, the file's digest. Reads the whole
  // file.
  void verify_all() const;

 private:
  struct Lazy;  // what is read at first use: layout, digests, sparse index of boundaries
  Shard(OpenFiles& files, std::string path, const ShardInfo& info, const ShardAttributes& expected);
  const Lazy& opened() const;
  const Lazy& indexed() const;
  void open_layout() const;
  void index_offsets(const ByteExtent& extent, std::vector<uint64_t>& sparse, std::string* digest) const;
  void append_starts(const ByteExtent& extent, const std::vector<uint64_t>& sparse, int64_t first,
                     int64_t count, std::vector<int32_t>& out) const;
  void check_block(int64_t block, std::span<const std::byte> bytes) const;
  void read_token_bytes(int64_t offset, std::span<std::byte> out) const;
  void read_at(int64_t offset, std::span<std::byte> out) const;

  OpenFiles& files_;
  std::string path_;
  ShardInfo info_;
  ShardAttributes expected_;
  std::unique_ptr<Lazy> lazy_;
};

// XXH3-128 of the bytes of `file` that lie in none of the arrays of `info`. Throws Error{BadInput} for
// extents that overlap, leave the file, or leave more than 16 MiB over.
std::string shard_metadata_digest(const ReadableFile& file, const ShardInfo& info, const std::string& path);
// XXH3-128 of a whole file, read in pieces.
std::string file_digest(const ReadableFile& file);

}  // namespace hearth
