// A folder that `hearth data prepare` wrote: dataset.json, its shards, and the tokenizer's files. Opened
// read-only; start-up checks dataset.json, every shard's size and metadata digest, nothing that costs more.
// Const members are thread-safe. Errors: BadInput for anything wrong inside the folder, Io where the system
// refuses.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "data/open_files.h"
#include "data/shard.h"

namespace hearth {

// One input of `data prepare`.
struct SourceInfo {
  std::string path;      // as given; for people only
  std::string digest;    // XXH3-128 of the file's bytes
  std::string selector;  // JSON field or HDF5 dataset that was read; empty for .txt
  int64_t num_documents = 0;
  int64_t num_skipped = 0;  // bad lines left out by --skip-bad
  bool operator==(const SourceInfo&) const = default;
};

inline constexpr int64_t kMaxPackLength = int64_t{1} << 24;

// How conversations became the tokens and loss masks of a dataset. Appended sources must be treated alike.
struct FineTuningSettings {
  std::string kind;                  // "sft"; "preference": documents 2k and 2k + 1 are chosen and rejected
  std::string record_format;         // name(RecordFormat)
  std::string chat_template_digest;  // XXH3-128 of its source; empty: plain prompts and answers without one
  std::string template_variables;    // JSON object
  std::string train_on;              // name(TrainOn)
  std::string long_documents;        // "cut" or "drop"
  int64_t pack_length = 0;           // tokens per bin, at most kMaxPackLength; 0: not packed
  bool operator==(const FineTuningSettings&) const = default;
};

// dataset.json, as a value.
struct DatasetManifest {
  ShardAttributes common;  // format version, tokenizer digest, vocabulary size, eos id; source_digest unused
  double validation_fraction = 0;
  std::string split;                              // "", "train" or "validation"
  std::optional<FineTuningSettings> fine_tuning;  // none: kind "text", every token is a target
  std::vector<SourceInfo> sources;
  std::vector<ShardInfo> shards;
  bool operator==(const DatasetManifest&) const = default;
};
std::string manifest_to_json(const DatasetManifest& manifest);  // indented text
// Strict: unknown or missing keys, names with folders in them, negative or overflowing sizes are
// Error{BadInput}.
DatasetManifest manifest_from_json(std::string_view text, const std::string& path);

class Dataset {
 public:
  static std::unique_ptr<Dataset> open(FileSystem& fs, const std::string& directory);

  const std::string& directory() const { return directory_; }
  const DatasetManifest& manifest() const { return manifest_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return num_documents_; }
  int64_t vocab_size() const { return manifest_.common.vocab_size; }
  std::optional<int32_t> eos_id() const;
  const std::string& tokenizer_digest() const { return manifest_.common.tokenizer_digest; }
  std::string tokenizer_directory() const { return directory_ + "/tokenizer"; }
  // Changes when a shard is appended: XXH3-128 of the shard list and the tokenizer's digest.
  const std::string& digest() const { return digest_; }
  // Does not change when shards are appended or the folder moves: the digest of the first shard.
  const std::string& id() const { return manifest_.shards.front().digest; }

  // "text", "sft" or "preference".
  std::string kind() const { return manifest_.fine_tuning ? manifest_.fine_tuning->kind : "text"; }
  // Tokens per bin; 0 where documents are not packed.
  int64_t pack_length() const { return manifest_.fine_tuning ? manifest_.fine_tuning->pack_length : 0; }
  // Windows of seq_length tokens must hold whole bins. Throws Error{Config} where they do not.
  void require_seq_length(int64_t seq_length) const;

  int64_t num_shards() const { return static_cast<int64_t>(shards_.size()); }
  const Shard& shard(int64_t index) const { return *shards_.at(static_cast<size_t>(index)); }

  // Document i in [0, num_documents), in shard order, with the eos that prepare appended; the last one of a
  // bin with its padding.
  std::vector<int32_t> document(int64_t index) const;
  // Which of its tokens count as targets; all ones for kind "text".
  std::vector<uint8_t> document_loss_mask(int64_t index) const;

 private:
  Dataset() = default;
  struct Place {
    int64_t shard, begin, end;
  };
  Place place(int64_t document) const;
  std::string directory_;
  DatasetManifest manifest_;
  std::string digest_;
  int64_t num_tokens_ = 0, num_documents_ = 0;
  std::unique_ptr<OpenFiles> files_;  // before shards_, which use it
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<int64_t> first_document_;  // [num_shards] global index of each shard's first document
};

}  // namespace hearth
