#include "data/sampler.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {
namespace {

// A sample of the tokens [first, first + seq_length + 1) of a shard; what lies beyond its end is padding. In
// a masked shard no conversation is learnt from another one's end, whatever border_targets says.
Sample cut_window(const Shard& shard, int64_t first, int64_t seq_length, BorderTargets border_targets) {
  const int64_t count = std::min(seq_length + 1, shard.num_tokens() - first);
  Sample sample;
  sample.shard_digest = shard.info().digest;
  sample.first_token = first;
  sample.tokens.resize(static_cast<size_t>(count));
  shard.read_tokens(first, sample.tokens);
  sample.loss_mask.resize(static_cast<size_t>(count - 1));
  shard.read_loss_mask(first + 1, sample.loss_mask);
  sample.document_starts.push_back(0);
  for (const int32_t start : shard.boundaries(first, count)) {
    if (start == 0) continue;
    if (border_targets == BorderTargets::Skip || shard.has_loss_mask())
      sample.loss_mask[static_cast<size_t>(start - 1)] = 0;
    if (start < seq_length) sample.document_starts.push_back(start);
  }
  if (count <= seq_length) {
    // In a masked shard it is the tail of the last document, like the padding of its bins.
    if (count < seq_length && !shard.has_loss_mask())
      sample.document_starts.push_back(static_cast<int32_t>(count));
    sample.tokens.resize(static_cast<size_t>(seq_length + 1), sample.tokens.back());
    sample.loss_mask.resize(static_cast<size_t>(seq_length), 0);
  }
  return sample;
}

std::vector<double> weights_of(const std::vector<WeightedDataset>& datasets) {
  std::vector<double> weights;
  for (const auto& entry : datasets) weights.push_back(entry.weight);
  return weights;
}

void check_one_tokenizer(const Dataset& first, const Dataset& other) {
  HEARTH_CHECK(first.tokenizer_digest() == other.tokenizer_digest(), BadInput,
               "datasets of one run must share a tokenizer: {} was made with {}, {} with {}",
               first.directory(), first.tokenizer_digest(), other.directory(), other.tokenizer_digest());
}

LedgerOffer offer_of(const WeightedDataset& entry, int64_t seq_length) {
  LedgerOffer offer{entry.dataset->id(), entry.dataset->directory(), entry.weight, {}};
  for (const auto& shard : entry.dataset->manifest().shards) {
    offer.shards.push_back({shard.file, shard.digest, (shard.num_tokens - 1) / seq_length});
  }
  return offer;
}

DataLedger join(const std::vector<WeightedDataset>& datasets, const StreamOptions& options,
                DataLedger ledger) {
  HEARTH_CHECK(options.seq_length >= 1 && options.seq_length < INT32_MAX, Config,
               "data.seq_length is {}, expected 1 to {}", options.seq_length, INT32_MAX - 1);
  std::vector<LedgerOffer> offers;
  for (const auto& entry : datasets) {
    entry.dataset->require_seq_length(options.seq_length);
    offers.push_back(offer_of(entry, options.seq_length));
    check_one_tokenizer(*datasets.front().dataset, *entry.dataset);
  }
  return continue_ledger(std::move(ledger), options.seed, options.seq_length, offers);
}

}  // namespace

SampleStream::SampleStream(std::vector<WeightedDataset> datasets, const StreamOptions& options,
                           DataLedger ledger)
    : datasets_(std::move(datasets)),
      options_(options),
      ledger_(join(datasets_, options, std::move(ledger))),
      blend_(weights_of(datasets_)) {
  const int64_t blended = ledger_.num_consumed - ledger_.mixtures.back().begin;
  for (size_t i = 0; i < datasets_.size(); ++i) {
    const auto found =
        std::find_if(ledger_.datasets.begin(), ledger_.datasets.end(),
                     [&](const DatasetLedger& d) { return d.id == datasets_[i].dataset->id(); });
    ledger_index_.push_back(static_cast<size_t>(found - ledger_.datasets.begin()));
    blended_before_.push_back(blend_.count(static_cast<int32_t>(i), blended));
    cursors_.emplace_back(*found, options_.seed);
    auto& ends = window_ends_.emplace_back();
    for (const auto& shard : found->shards)
      ends.push_back((ends.empty() ? 0 : ends.back()) + shard.num_windows);
  }
}

Sample SampleStream::get(int64_t global_sample_index) const {
  HEARTH_REQUIRE(global_sample_index >= first_sample(), "sample {} was used before this stream begins, at {}",
                 global_sample_index, first_sample());
  const Blend::Slot slot = blend_.slot(global_sample_index - ledger_.mixtures.back().begin);
  const auto source = static_cast<size_t>(slot.source);
  const auto position = cursors_[source].ahead(slot.ordinal - blended_before_[source]);
  const auto& ends = window_ends_[source];
  const int64_t shard = std::upper_bound(ends.begin(), ends.end(), position.window) - ends.begin();
  const int64_t window = position.window - (shard == 0 ? 0 : ends[static_cast<size_t>(shard - 1)]);
  Sample sample = cut_window(datasets_[source].dataset->shard(shard), window * options_.seq_length,
                             options_.seq_length, options_.border_targets);
  sample.provenance = {slot.source, position.epoch, shard, window};
  sample.number = global_sample_index;
  return sample;
}

DataLedger SampleStream::ledger_after(int64_t num_consumed) const {
  HEARTH_REQUIRE(num_consumed >= first_sample(), "ledger after {} samples asked for, the stream begins at {}",
                 num_consumed, first_sample());
  DataLedger ledger = ledger_;
  const int64_t blended = num_consumed - ledger.mixtures.back().begin;
  for (size_t i = 0; i < datasets_.size(); ++i) {
    advance(ledger.datasets[ledger_index_[i]],
            blend_.count(static_cast<int32_t>(i), blended) - blended_before_[i]);
  }
  ledger.num_consumed = num_consumed;
  return ledger;
}

int64_t SampleStream::windows_per_epoch() const {
  int64_t windows = 0;
  for (const auto& ends : window_ends_) windows += ends.back();
  return windows;
}

ValidationStream::ValidationStream(std::vector<std::unique_ptr<Dataset>> datasets, int64_t seq_length,
                                   BorderTargets border_targets)
    : datasets_(std::move(datasets)), seq_length_(seq_length), border_targets_(border_targets) {
  HEARTH_CHECK(seq_length >= 1 && seq_length < INT32_MAX, Config, "data.seq_length is {}, expected 1 to {}",
               seq_length, INT32_MAX - 1);
  int64_t windows = 0;
  for (size_t d = 0; d < datasets_.size(); ++d) {
    check_one_tokenizer(*datasets_.front(), *datasets_[d]);
    datasets_[d]->require_seq_length(seq_length);
    for (int64_t s = 0; s < datasets_[d]->num_shards(); ++s) {
      windows += (datasets_[d]->shard(s).num_tokens() - 2 + seq_length) /
                 seq_length;  // targets / seq_length, rounded up
      shards_.push_back({static_cast<int32_t>(d), s});
      window_ends_.push_back(windows);
    }
  }
  HEARTH_CHECK(datasets_.empty() || windows > 0, BadInput,
               "{}: too small to evaluate on: no shard holds two tokens", datasets_.front()->directory());
}

Sample ValidationStream::get(int64_t index) const {
  HEARTH_REQUIRE(index >= 0 && index < size(), "validation window {} of {} asked for", index, size());
  const auto at = std::upper_bound(window_ends_.begin(), window_ends_.end(), index) - window_ends_.begin();
  const ShardRef& ref = shards_[static_cast<size_t>(at)];
  const int64_t window = index - (at == 0 ? 0 : window_ends_[static_cast<size_t>(at - 1)]);
  const Shard& shard = datasets_[static_cast<size_t>(ref.dataset)]->shard(ref.shard);
  Sample sample = cut_window(shard, window * seq_length_, seq_length_, border_targets_);
  sample.provenance = {ref.dataset, 0, ref.shard, window};
  sample.number = index;
  return sample;
}

std::vector<int64_t> micro_batch_samples(const BatchShape& shape, int64_t step, int64_t micro) {
  const int64_t per_micro = shape.micro_batch_size * shape.data_parallel_size;
  HEARTH_CHECK(shape.micro_batch_size >= 1 && shape.data_parallel_size >= 1 && shape.global_batch_size >= 1 &&
                   shape.global_batch_size % per_micro == 0,
               Config,
               "global_batch_size {} is not a multiple of micro_batch_size {} x data-parallel size {} = {}",
               shape.global_batch_size, shape.micro_batch_size, shape.data_parallel_size, per_micro);
  HEARTH_ASSERT(shape.data_parallel_rank >= 0 && shape.data_parallel_rank < shape.data_parallel_size);
  HEARTH_ASSERT(step >= 0 && micro >= 0 && micro < shape.micro_batches_per_step());
  const int64_t first =
      step * shape.global_batch_size + micro * per_micro + shape.data_parallel_rank * shape.micro_batch_size;
  std::vector<int64_t> samples(static_cast<size_t>(shape.micro_batch_size));
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = first + static_cast<int64_t>(i);
  return samples;
}

}  // namespace hearth
