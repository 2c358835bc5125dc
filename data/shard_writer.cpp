#include "data/shard_writer.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "base/hash.h"
#include "data/hdf5_array.h"
#include "data/hdf5_handle.h"
#include "data/shard_layout.h"

namespace hearth {
namespace {

void write_attribute(hid_t file, const char* name, hid_t file_type, hid_t memory_type, const void* value,
                     const std::string& path) {
  const Hdf5Handle space = own(H5Screate(H5S_SCALAR), H5Sclose, ErrorKind::Internal, "H5Screate");
  const Hdf5Handle attribute =
      own(H5Acreate2(file, name, file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose, ErrorKind::Io,
          fmt::format("{}: cannot create attribute {}", path, name));
  check_hdf5(H5Awrite(attribute.get(), memory_type, value), path, "write an attribute");
}

void write_integer(hid_t file, const char* name, int64_t value, const std::string& path) {
  write_attribute(file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value, path);
}

void write_text(hid_t file, const char* name, const std::string& value, const std::string& path) {
  const Hdf5Handle type = own(H5Tcopy(H5T_C_S1), H5Tclose, ErrorKind::Internal, "H5Tcopy");
  check_hdf5(H5Tset_size(type.get(), value.size() + 1), path, "set a text size");
  write_attribute(file, name, type.get(), type.get(), value.c_str(), path);
}

}  // namespace

struct ShardWriter::Hdf5 {
  Hdf5Handle file, tokens, block_digest, loss_mask;
};

ShardWriter::ShardWriter(FileSystem& fs, ShardPlan plan)
    : fs_(fs),
      plan_(std::move(plan)),
      path_(plan_.directory + "/" + plan_.file),
      temporary_path_(path_ + ".tmp") {
  const auto& offsets = plan_.document_offsets;
  HEARTH_ASSERT(offsets.size() >= 2 && offsets.front() == 0 && offsets.back() > 0);
  info_.file = plan_.file;
  info_.token_bytes = token_bytes_for(plan_.attributes.vocab_size);
  info_.num_tokens = static_cast<int64_t>(offsets.back());
  info_.num_documents = static_cast<int64_t>(offsets.size()) - 1;
  info_.documents_digest = xxh3_128_hex(std::as_bytes(std::span(offsets)));
  const int64_t token_array_bytes = info_.num_tokens * info_.token_bytes;
  const int64_t blocks = (token_array_bytes + kTokenBlockBytes - 1) / kTokenBlockBytes;
  const int64_t mask_bytes = plan_.has_loss_mask ? info_.num_tokens : 0;
  HEARTH_CHECK(fs.free_bytes(plan_.directory) >
                   token_array_bytes + mask_bytes + static_cast<int64_t>(offsets.size()) * 8,
               NoSpace, "{}: {} bytes needed for this shard, {} free in {}", path_, token_array_bytes,
               fs.free_bytes(plan_.directory), plan_.directory);

  Hdf5Handle file = create_hdf5(temporary_path_);
  const hid_t id = file.get();
  const ShardAttributes& attributes = plan_.attributes;
  write_integer(id, "format_version", attributes.format_version, path_);
  write_text(id, "tokenizer_digest", attributes.tokenizer_digest, path_);
  write_integer(id, "vocab_size", attributes.vocab_size, path_);
  write_integer(id, "eos_id", attributes.eos_id, path_);
  write_text(id, "source_digest", attributes.source_digest, path_);
  const Hdf5Handle group_creation = hdf5_property_list(H5P_GROUP_CREATE);
  check_hdf5(H5Pset_obj_track_times(group_creation.get(), false), path_, "switch off time stamps");
  const Hdf5Handle group =
      own(H5Gcreate2(id, "documents", H5P_DEFAULT, group_creation.get(), H5P_DEFAULT), H5Gclose,
          ErrorKind::Io, fmt::format("{}: cannot create group documents", path_));
  const Hdf5Handle documents =
      create_array(group.get(), "offset", H5T_STD_U64LE, {info_.num_documents + 1}, path_);
  check_hdf5(H5Dwrite(documents.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, offsets.data()),
             path_, "write /documents/offset");
  Hdf5Handle digests = create_array(id, "block_digest", H5T_STD_U64LE, {blocks}, path_);
  Hdf5Handle tokens = create_array(id, "tokens", info_.token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE,
                                   {info_.num_tokens}, path_);
  Hdf5Handle mask = plan_.has_loss_mask
                        ? create_array(id, "loss_mask", H5T_STD_U8LE, {info_.num_tokens}, path_)
                        : Hdf5Handle(-1, H5Dclose);
  if (plan_.has_loss_mask) info_.num_trained_tokens = info_.num_padding_tokens = 0;
  hdf5_ =
      std::make_unique<Hdf5>(Hdf5{std::move(file), std::move(tokens), std::move(digests), std::move(mask)});
  block_.reserve(static_cast<size_t>(kTokenBlockBytes));
}

ShardWriter::~ShardWriter() {
  hdf5_.reset();
  std::error_code ignored;  // after finish() the temporary name is gone already
  std::filesystem::remove(temporary_path_, ignored);
}

void ShardWriter::append(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    HEARTH_ASSERT(token >= 0 && token < plan_.attributes.vocab_size);
    const auto* bytes =
        reinterpret_cast<const std::byte*>(&token);  // little-endian: the low bytes come first
    block_.insert(block_.end(), bytes, bytes + info_.token_bytes);
    if (block_.size() == static_cast<size_t>(kTokenBlockBytes)) flush_block();
  }
}

void ShardWriter::append(std::span<const int32_t> tokens, std::span<const uint8_t> loss_mask) {
  HEARTH_ASSERT(plan_.has_loss_mask && tokens.size() == loss_mask.size());
  append(tokens);
  for (const uint8_t value : loss_mask) {
    HEARTH_ASSERT(value <= 1);
    *info_.num_trained_tokens += value;
    mask_.push_back(value);
    if (mask_.size() == static_cast<size_t>(kTokenBlockBytes)) flush_mask();
  }
}

void ShardWriter::append_padding(int32_t padding_id, int64_t count) {
  const auto size = static_cast<size_t>(count);
  append(std::vector<int32_t>(size, padding_id), std::vector<uint8_t>(size, 0));
  *info_.num_padding_tokens += count;
}

void ShardWriter::flush_mask() {
  if (mask_.empty()) return;
  const auto count = static_cast<int64_t>(mask_.size());
  write_rows(hdf5_->loss_mask, H5T_STD_U8LE, written_mask_, count, mask_.data(), path_);
  written_mask_ += count;
  mask_.clear();
}

void ShardWriter::flush_block() {
  if (block_.empty()) return;
  block_digests_.push_back(xxh3_64(block_));
  const int64_t count = static_cast<int64_t>(block_.size()) / info_.token_bytes;
  HEARTH_ASSERT(written_tokens_ + count <= info_.num_tokens);
  write_rows(hdf5_->tokens, info_.token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, written_tokens_, count,
             block_.data(), path_);
  written_tokens_ += count;
  block_.clear();
}

ShardInfo ShardWriter::finish() {
  flush_block();
  flush_mask();
  HEARTH_ASSERT(written_tokens_ == info_.num_tokens);
  HEARTH_ASSERT(written_mask_ == (plan_.has_loss_mask ? info_.num_tokens : 0));
  check_hdf5(H5Dwrite(hdf5_->block_digest.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                      block_digests_.data()),
             path_, "write /block_digest");
  const bool closed =
      hdf5_->tokens.reset() && hdf5_->block_digest.reset() && hdf5_->loss_mask.reset() && hdf5_->file.reset();
  if (!closed) fail_hdf5(ErrorKind::Io, fmt::format("{}: cannot close", path_));
  sync_written(fs_, temporary_path_);  // before the name is
  {
    const auto file = fs_.open(temporary_path_);
    info_.size_bytes = file->size();
    HEARTH_CHECK(info_.size_bytes <= kMaxShardBytes, Internal,
                 "{}: shard of {} bytes is above the limit of {}", path_, info_.size_bytes, kMaxShardBytes);
    const ShardLayout layout = read_shard_layout(temporary_path_, info_.size_bytes);
    info_.tokens = layout.tokens;
    info_.documents = layout.documents;
    info_.loss_mask = layout.loss_mask;
    info_.digest = file_digest(*file);
    info_.metadata_digest = shard_metadata_digest(*file, info_, path_);
  }
  fs_.rename(temporary_path_, path_);
  fs_.sync_directory(plan_.directory);  // makes the name durable before dataset.json speaks of it
  return info_;
}

}  // namespace hearth
