// The sample stream: a pure function of (dataset list, weights, seed, sample index). A sample is a window of
// seq_length + 1 tokens of one shard (stride seq_length, so every token is a target once); the last, shorter
// window of a shard is not trained on. In a packed dataset a window holds whole bins. Windows are permuted
// per epoch, datasets are blended by weight; neither needs an index, and nothing depends on the number of
// ranks. Thread-safe once built.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/blend.h"
#include "data/dataset.h"
#include "data/ledger.h"

namespace hearth {

struct Provenance {
  int32_t dataset = 0;  // index in the list of the experiment file
  int64_t epoch = 0;
  int64_t shard = 0;
  int64_t window = 0;  // within the shard
  bool operator==(const Provenance&) const = default;
};

struct Sample {
  std::vector<int32_t> tokens;     // [seq_length + 1]
  std::vector<uint8_t> loss_mask;  // [seq_length]: 1 = tokens[t + 1] counts as the target of position t
  std::vector<int32_t>
      document_starts;  // ascending positions in [0, seq_length) at which a document begins; first is 0
  Provenance provenance;
  std::string shard_digest;  // of provenance.shard
  int64_t first_token = 0;   // of the sample, in that shard
  int64_t number = 0;        // in the stream
  bool operator==(const Sample&) const = default;
};

// Whether the first token of a document counts as the target of the token before it, which belongs to another
// document. Skip fits attention that stops at borders (reset_attention_mask); Count is the plain packing of
// GPT-2.
enum class BorderTargets { Skip, Count };

struct WeightedDataset {
  std::unique_ptr<Dataset> dataset;
  double weight = 1;
};

struct StreamOptions {
  int64_t seq_length = 0;
  uint64_t seed = 0;
  BorderTargets border_targets = BorderTargets::Skip;
};

class SampleStream {
 public:
  // `ledger`: of the checkpoint that is resumed, or DataLedger{} for a fresh run. Datasets of one run must
  // share one tokenizer. Throws Error{Config} as continue_ledger does, Error{BadInput} for mixed tokenizers.
  SampleStream(std::vector<WeightedDataset> datasets, const StreamOptions& options, DataLedger ledger = {});

  // Random access from the ledger's position on: global_sample_index >= first_sample(). Thread-safe.
  Sample get(int64_t global_sample_index) const;
  // The ledger when samples [0, num_consumed) were used; num_consumed >= first_sample(). This goes into the
  // checkpoint.
  DataLedger ledger_after(int64_t num_consumed) const;

  int64_t first_sample() const { return ledger_.num_consumed; }
  int64_t seq_length() const { return options_.seq_length; }
  int64_t vocab_size() const { return datasets_.front().dataset->vocab_size(); }
  const std::string& tokenizer_digest() const { return datasets_.front().dataset->tokenizer_digest(); }
  int64_t windows_per_epoch() const;  // of all datasets together
  int64_t num_datasets() const { return static_cast<int64_t>(datasets_.size()); }
  const Dataset& dataset(int64_t index) const { return *datasets_.at(static_cast<size_t>(index)).dataset; }

 private:
  std::vector<WeightedDataset> datasets_;
  StreamOptions options_;
  DataLedger ledger_;
  Blend blend_;
  std::vector<size_t> ledger_index_;     // [datasets] entry of ledger_.datasets
  std::vector<int64_t> blended_before_;  // [datasets] samples of the current mixture before first_sample()
  std::vector<DatasetCursor> cursors_;   // [datasets]
  std::vector<std::vector<int64_t>> window_ends_;  // [datasets][shards] running sums of windows
};

// Every window of every validation dataset once, in order, unshuffled. The last window of a shard is padded
// with the last token and loss_mask 0, so every token is scored once and a shard shorter than a window still
// counts. Sample indices of two ranks simply interleave. Thread-safe once built.
class ValidationStream {
 public:
  ValidationStream(std::vector<std::unique_ptr<Dataset>> datasets, int64_t seq_length,
                   BorderTargets border_targets = BorderTargets::Skip);
  int64_t size() const { return window_ends_.empty() ? 0 : window_ends_.back(); }
  Sample get(int64_t index) const;  // 0 <= index < size()
  int64_t seq_length() const { return seq_length_; }
  int64_t num_datasets() const { return static_cast<int64_t>(datasets_.size()); }
  const Dataset& dataset(int64_t index) const { return *datasets_.at(static_cast<size_t>(index)); }

 private:
  struct ShardRef {
    int32_t dataset;
    int64_t shard;
  };
  std::vector<std::unique_ptr<Dataset>> datasets_;
  int64_t seq_length_;
  BorderTargets border_targets_;
  std::vector<ShardRef> shards_;
  std::vector<int64_t> window_ends_;  // [all shards] running sums of windows
};

// Which global samples a data-parallel rank reads: step s uses samples [s * G, (s + 1) * G) with G =
// global_batch_size; micro-batch m gives rank r the samples s * G + (m * data_parallel_size + r) *
// micro_batch_size + [0, micro_batch_size). So a rank count that divides G changes who reads a sample, never
// which samples a step has.
struct BatchShape {
  int64_t global_batch_size = 1;
  int64_t micro_batch_size = 1;
  int64_t data_parallel_size = 1;
  int64_t data_parallel_rank = 0;
  int64_t micro_batches_per_step() const {
    return global_batch_size / (micro_batch_size * data_parallel_size);
  }
};
// Throws Error{Config} where the shape does not divide.
std::vector<int64_t> micro_batch_samples(const BatchShape& shape, int64_t step, int64_t micro);

}  // namespace hearth
