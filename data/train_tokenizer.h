// `hearth data train-tokenizer` as a function: text files -> tokenizer.json and tokenizer_config.json.
// The result depends on the inputs and options, never on the number of workers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/tokenizer/bpe_trainer.h"

namespace hearth {

struct TrainTokenizerOptions {
  std::vector<std::string> inputs;  // files and folders, as data/corpus.h reads them
  std::string output;               // folder
  std::string text_field = "text";  // of JSON lines
  int num_workers = 0;              // 0: all cores this process may use
  BpeTrainingOptions training;
  // Distinct pre-tokens held; the rarest are dropped beyond it. About 200 bytes each.
  int64_t max_words = int64_t{4} << 20;
};

enum class TrainTokenizerPhase { Count, Merge };

struct TrainTokenizerProgress {
  TrainTokenizerPhase phase = TrainTokenizerPhase::Count;
  int64_t done = 0, total = 0;  // bytes of input; merges
};

struct TrainTokenizerReport {
  int64_t num_sources = 0, num_documents = 0, num_words = 0;  // words: distinct pre-tokens
  int64_t vocab_size = 0;  // reached; smaller than asked for if pairs ran out
};

// Throws Error{BadInput} with file:line for a malformed line, for token files and for inputs without text,
// Error{Usage} for a vocabulary that is too small.
TrainTokenizerReport train_tokenizer(FileSystem& fs, const TrainTokenizerOptions& options,
                                     const std::function<void(const TrainTokenizerProgress&)>& progress = {});

}  // namespace hearth
