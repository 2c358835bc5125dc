// Writes one shard in the format of data/README.md: to a temporary name, fsync, rename, fsync of the folder.
// The same tokens and attributes always give the same bytes. Not thread-safe; several writers may work side
// by side.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/shard.h"

namespace hearth {

// Bytes per token: two where every id fits.
inline int64_t token_bytes_for(int64_t vocab_size) {
  return vocab_size <= 65536 ? 2 : 4;
}

struct ShardPlan {
  std::string directory;
  std::string file;  // plain name
  ShardAttributes attributes;
  // [num_documents + 1] ascending from 0: document i has tokens [offset[i], offset[i + 1]).
  std::vector<uint64_t> document_offsets;
  bool has_loss_mask = false;
};

class ShardWriter {
 public:
  // Creates the file with its full size at once, so that a full disk shows here. Error{NoSpace}, Error{Io}.
  ShardWriter(FileSystem& fs, ShardPlan plan);
  ~ShardWriter();  // removes the temporary file unless finish() returned
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  void append(std::span<const int32_t> tokens);  // ids must be inside the vocabulary
  // For a plan with a loss mask: one byte, 0 or 1, per token.
  void append(std::span<const int32_t> tokens, std::span<const uint8_t> loss_mask);
  // The same for padding: mask 0, and counted in ShardInfo.
  void append_padding(int32_t padding_id, int64_t count);
  // All tokens of the plan must have come. Publishes the file and returns its entry for dataset.json.
  ShardInfo finish();

 private:
  struct Hdf5;
  void flush_block();
  void flush_mask();
  FileSystem& fs_;
  ShardPlan plan_;
  std::string path_, temporary_path_;
  ShardInfo info_;
  std::unique_ptr<Hdf5> hdf5_;
  std::vector<std::byte> block_;
  std::vector<uint8_t> mask_;  // not yet written
  std::vector<uint64_t> block_digests_;
  int64_t written_tokens_ = 0, written_mask_ = 0;
};

}  // namespace hearth
