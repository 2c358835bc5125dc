#include "data/dataset.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"

namespace hearth {
namespace {

constexpr int64_t kMaxManifestBytes = 256 << 20;  // a shard takes about 600 bytes: room for 400,000

std::string list_digest(const DatasetManifest& manifest) {
  std::string text = manifest.common.tokenizer_digest + "\n";
  for (const auto& shard : manifest.shards) text += shard.digest + "\n";
  return xxh3_128_hex(text);
}

}  // namespace

std::unique_ptr<Dataset> Dataset::open(FileSystem& fs, const std::string& directory) {
  HEARTH_CHECK(fs.is_directory(directory), BadInput, "{}: no such dataset folder", directory);
  const std::string path = directory + "/dataset.json";
  HEARTH_CHECK(
      fs.exists(path), BadInput, "{}: holds no dataset.json{}", directory,
      fs.exists(directory + "/train/dataset.json")
          ? fmt::format("; it was split: use {0}/train and {0}/validation", directory)
          : "; make one with `hearth data prepare INPUT... --tokenizer T --output " + directory + "`");
  std::unique_ptr<Dataset> dataset(new Dataset);
  dataset->directory_ = directory;
  dataset->manifest_ = manifest_from_json(fs.read_text(path, kMaxManifestBytes), path);
  const DatasetManifest& manifest = dataset->manifest_;
  HEARTH_CHECK(!manifest.shards.empty(), BadInput, "{}: lists no shard", path);
  dataset->digest_ = list_digest(manifest);
  dataset->files_ = std::make_unique<OpenFiles>(fs);
  for (const auto& info : manifest.shards) {
    dataset->shards_.push_back(Shard::open(*dataset->files_, directory, info, manifest.common));
    dataset->first_document_.push_back(dataset->num_documents_);
    dataset->num_tokens_ += info.num_tokens;
    dataset->num_documents_ += info.num_documents;
  }
  return dataset;
}

std::optional<int32_t> Dataset::eos_id() const {
  if (manifest_.common.eos_id < 0) return std::nullopt;
  return checked_cast<int32_t>(manifest_.common.eos_id);
}

void Dataset::require_seq_length(int64_t seq_length) const {
  HEARTH_CHECK(
      pack_length() == 0 || seq_length % pack_length() == 0, Config,
      "{}: its documents are packed into bins of {} tokens, which data.seq_length {} does not hold whole; "
      "set data.seq_length to {} or a multiple of it, or prepare the data again with --pack-length {}",
      directory_, pack_length(), seq_length, pack_length(), seq_length);
}

Dataset::Place Dataset::place(int64_t index) const {
  HEARTH_REQUIRE(index >= 0 && index < num_documents_, "{}: document {} of {} asked for", directory_, index,
                 num_documents_);
  const auto after = std::upper_bound(first_document_.begin(), first_document_.end(), index);
  const int64_t shard_index = after - first_document_.begin() - 1;
  const auto [begin, end] = shard(shard_index).document_range(index - *(after - 1));
  return {shard_index, begin, end};
}

std::vector<int32_t> Dataset::document(int64_t index) const {
  const Place at = place(index);
  std::vector<int32_t> tokens(static_cast<size_t>(at.end - at.begin));
  shard(at.shard).read_tokens(at.begin, tokens);
  return tokens;
}

std::vector<uint8_t> Dataset::document_loss_mask(int64_t index) const {
  const Place at = place(index);
  std::vector<uint8_t> mask(static_cast<size_t>(at.end - at.begin));
  shard(at.shard).read_loss_mask(at.begin, mask);
  return mask;
}

}  // namespace hearth
