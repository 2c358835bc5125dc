// `hearth data prepare` as a function: text or token files -> a dataset folder.
//
// Work is cut into units whose borders depend on the inputs alone. Each unit is tokenised into a run file
// (whole or not there), then the runs are merged into shards in the order of keyed hashes of the documents.
// So the output depends on inputs, tokenizer and options, never on the number of workers or on how often the
// command was killed and started again: the second run finds the plan and the whole runs in OUTPUT/.prepare
// and goes on. dataset.json is replaced last; until then the dataset is what it was before.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/dataset.h"
#include "data/document_encoder.h"

namespace hearth {

// What a dataset of conversations is made with; the rest of PrepareOptions holds for it too.
struct ConversationOptions {
  RecordFormat format = RecordFormat::Text;  // Text: no conversations, and nothing below is used
  RecordFields fields;
  std::string chat_template;  // file; empty: the tokenizer's own; "none": plain prompt and answer
  std::vector<std::string> template_variables;  // key=value
  TrainOn train_on = TrainOn::AssistantTurns;
  std::optional<int64_t> pack_length;  // tokens per bin; 0: not packed; must be given
  LongDocuments long_documents = LongDocuments::Cut;
};

struct PrepareOptions {
  std::vector<std::string> inputs;  // files and folders
  std::string tokenizer;            // tokenizer.json, tokenizer.model or a folder
  std::string output;
  int num_workers = 0;  // 0: all cores this process may use
  uint64_t seed = 1234;
  std::string text_field = "text";
  std::string token_dataset = "/input_ids";  // of .h5 inputs
  double validation_fraction = 0;            // in [0, 1); > 0 writes OUTPUT/train and OUTPUT/validation
  BadLines bad_lines = BadLines::Stop;
  TextDocuments text_documents = TextDocuments::WholeFile;
  ConversationOptions conversations;
  int64_t shard_bytes = 512 << 20;
  int64_t unit_bytes = 0;  // 0: from the size of the inputs
};

enum class PreparePhase { Digest, Tokenize, Write };

struct PrepareProgress {
  PreparePhase phase = PreparePhase::Digest;
  int64_t done = 0, total = 0;  // bytes of input; of tokens while writing
  int64_t num_documents = 0, num_tokens = 0;
};

struct PrepareReport {
  int64_t num_sources = 0;        // new ones
  int64_t num_known_sources = 0;  // left out: their digest is in the dataset already, or came twice
  int64_t num_ignored_files = 0;  // in folders, with another ending
  int64_t num_documents = 0, num_tokens = 0;  // without padding
  int64_t num_skipped_lines = 0;              // --skip-bad
  int64_t num_empty_documents = 0;
  // Of conversations. Trained and padding tokens are those of the new shards.
  std::string kind = "text";  // else "sft" or "preference"
  int64_t num_cut_documents = 0, num_dropped_documents = 0, num_untrained_documents = 0;
  int64_t num_trained_tokens = 0, num_padding_tokens = 0;
  int64_t pack_length = 0;
  int64_t num_shards = 0;
  int64_t num_units = 0, num_reused_units = 0;  // reused: finished by a run that was killed
  std::vector<std::string> datasets;            // folders that hold a dataset.json
};

// `progress` (may be empty) is called at most a few times a second, from one thread at a time.
// Throws Error{Usage} for options that do not fit the dataset that is there, {BadInput} for inputs, {InUse}
// where another process prepares the same folder, {NoSpace}, {Io}.
PrepareReport prepare_dataset(FileSystem& fs, const PrepareOptions& options,
                              const std::function<void(const PrepareProgress&)>& progress = {});

// `hearth data verify`: checks everything in the dataset folder DIR, or in DIR/train and DIR/validation.
// Throws Error{BadInput} that names shard and block. Returns what was checked.
struct VerifyReport {
  int64_t num_shards = 0, num_tokens = 0, num_documents = 0, size_bytes = 0;
};
VerifyReport verify_dataset(FileSystem& fs, const std::string& directory, int num_workers);

// DIR, or its train and validation folders where it was split.
std::vector<std::string> dataset_folders(FileSystem& fs, const std::string& directory);

}  // namespace hearth
