#include "data/ledger.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "data/blend.h"

namespace hearth {
namespace {

int64_t windows_of(const DatasetLedger& dataset, int64_t num_shards) {
  int64_t windows = 0;
  for (int64_t i = 0; i < num_shards; ++i) {
    windows = checked_add(windows, dataset.shards.at(static_cast<size_t>(i)).num_windows);
  }
  return windows;
}

uint64_t generation_key(const std::string& id, uint64_t seed, int64_t epoch, size_t generation) {
  uint64_t key = mix64(seed + 0x9e3779b97f4a7c15u) ^ xxh3_64(id);
  key = mix64(key) + static_cast<uint64_t>(epoch);
  return mix64(key) + generation;
}

// Folds a finished record into the one before it where both are plain epochs over the same shards.
void merge_last(std::vector<LedgerEpochs>& epochs) {
  if (epochs.size() < 2) return;
  LedgerEpochs& before = epochs[epochs.size() - 2];
  if (before.generations.size() != 1 || before.generations != epochs.back().generations) return;
  before.count += epochs.back().count;
  epochs.pop_back();
}

void check_shards_unchanged(const DatasetLedger& dataset, const LedgerOffer& offer) {
  for (size_t i = 0; i < dataset.shards.size(); ++i) {
    const LedgerShard& was = dataset.shards[i];
    HEARTH_CHECK(i < offer.shards.size(), Config,
                 "cannot resume: the training data lost a shard: {} had {} shards when the checkpoint was "
                 "written and has "
                 "{} now; missing: {} (digest {}). Restore it, or start afresh with --resume never",
                 offer.path, dataset.shards.size(), offer.shards.size(), was.file, was.digest);
    HEARTH_CHECK(was.digest == offer.shards[i].digest && was.num_windows == offer.shards[i].num_windows,
                 Config,
                 "cannot resume: the training data changed: shard {} of {} has digest {} now, the checkpoint "
                 "was trained on "
                 "{} with digest {}. Restore it, or start afresh with --resume never",
                 offer.shards[i].file, offer.path, offer.shards[i].digest, was.file, was.digest);
  }
}

void join_dataset(DataLedger& ledger, const LedgerOffer& offer) {
  const auto found = std::find_if(ledger.datasets.begin(), ledger.datasets.end(),
                                  [&](const DatasetLedger& dataset) { return dataset.id == offer.id; });
  const bool is_new = found == ledger.datasets.end();
  DatasetLedger& dataset = is_new ? ledger.datasets.emplace_back() : *found;
  if (is_new) dataset.id = offer.id;
  check_shards_unchanged(dataset, offer);
  dataset.path = offer.path;
  for (size_t i = 0; i < dataset.shards.size(); ++i) dataset.shards[i].file = offer.shards[i].file;
  dataset.shards.insert(dataset.shards.end(),
                        offer.shards.begin() + static_cast<int64_t>(dataset.shards.size()),
                        offer.shards.end());
  const auto num_shards = static_cast<int64_t>(dataset.shards.size());
  HEARTH_CHECK(windows_of(dataset, num_shards) > 0, Config,
               "{}: too small to train on: no shard holds seq_length + 1 = {} tokens; lower data.seq_length "
               "or add data",
               offer.path, ledger.seq_length + 1);
  if (is_new) {
    dataset.epochs.push_back({.first = 0, .count = 1, .generations = {{num_shards, 0}}});
    return;
  }
  auto& generations = dataset.epochs.back().generations;
  if (generations.back().num_shards == num_shards) return;
  if (generations.back().consumed == 0) {
    generations.back().num_shards = num_shards;  // nothing was drawn from it: its pool may still grow
  } else {
    generations.push_back({num_shards, 0});
  }
}

}  // namespace

int64_t pool_size(const DatasetLedger& dataset, std::span<const LedgerGeneration> generations) {
  int64_t pool = 0, known = 0;
  for (size_t i = 0; i < generations.size(); ++i) {
    const int64_t windows = windows_of(dataset, generations[i].num_shards);
    pool += windows - known - (i == 0 ? 0 : generations[i - 1].consumed);
    known = windows;
  }
  return pool;
}

void advance(DatasetLedger& dataset, int64_t windows) {
  HEARTH_ASSERT(windows >= 0 && !dataset.epochs.empty());
  dataset.consumed += windows;
  const auto num_shards = static_cast<int64_t>(dataset.shards.size());
  const int64_t total = windows_of(dataset, num_shards);
  while (windows > 0) {
    LedgerEpochs& current = dataset.epochs.back();
    const int64_t left = pool_size(dataset, current.generations) - current.generations.back().consumed;
    const int64_t taken = std::min(windows, left);
    current.generations.back().consumed += taken;
    windows -= taken;
    if (taken < left) return;
    int64_t next_epoch = current.first + current.count;
    merge_last(dataset.epochs);
    if (const int64_t whole = windows / total; whole > 0) {  // epochs that begin and end within this call
      dataset.epochs.push_back({.first = next_epoch, .count = whole, .generations = {{num_shards, total}}});
      merge_last(dataset.epochs);
      next_epoch += whole;
      windows -= whole * total;
    }
    dataset.epochs.push_back({.first = next_epoch, .count = 1, .generations = {{num_shards, 0}}});
  }
}

EpochWindows::EpochWindows(const DatasetLedger& dataset, uint64_t seed, int64_t epoch,
                           std::span<const LedgerGeneration> generations) {
  int64_t known = 0, left_over = 0;
  for (size_t i = 0; i < generations.size(); ++i) {
    const int64_t windows = windows_of(dataset, generations[i].num_shards);
    const int64_t pool = left_over + windows - known;
    links_.push_back({Permutation(pool, generation_key(dataset.id, seed, epoch, i)), left_over,
                      i == 0 ? 0 : generations[i - 1].consumed, known});
    left_over = pool - generations[i].consumed;
    known = windows;
  }
}

int64_t EpochWindows::window(size_t generation, int64_t position) const {
  while (true) {
    const Link& link = links_.at(generation);
    const int64_t entry = link.permutation(position);
    if (entry >= link.left_over) return link.first_new + (entry - link.left_over);
    position = link.previous_used + entry;
    --generation;  // generation 0 has nothing left over, so this ends
  }
}

DatasetCursor::DatasetCursor(const DatasetLedger& dataset, uint64_t seed)
    : dataset_(dataset),
      seed_(seed),
      current_(dataset, seed, dataset.epochs.back().first, dataset.epochs.back().generations),
      total_windows_(windows_of(dataset, static_cast<int64_t>(dataset.shards.size()))) {}

DatasetCursor::Position DatasetCursor::ahead(int64_t windows) const {
  const LedgerEpochs& current = dataset_.epochs.back();
  const size_t generation = current.generations.size() - 1;
  const int64_t position = current.generations.back().consumed + windows;
  const int64_t pool = current_.pool(generation);
  if (position < pool) return {current.first, current_.window(generation, position)};
  const int64_t epoch = current.first + 1 + (position - pool) / total_windows_;
  const Permutation permutation(total_windows_, generation_key(dataset_.id, seed_, epoch, 0));
  return {epoch, permutation((position - pool) % total_windows_)};
}

DataLedger continue_ledger(DataLedger ledger, uint64_t seed, int64_t seq_length,
                           std::span<const LedgerOffer> offers) {
  HEARTH_CHECK(!offers.empty(), Config, "data.train lists no dataset");
  const bool fresh = ledger.mixtures.empty();
  if (fresh) ledger.seed = seed, ledger.seq_length = seq_length;
  HEARTH_CHECK(ledger.seq_length == seq_length, Config,
               "cannot resume: the checkpoint's samples have seq_length {}, this job asks for {}",
               ledger.seq_length, seq_length);
  HEARTH_CHECK(ledger.seed == seed, Config,
               "cannot resume: the checkpoint's sample stream has seed {}, this job {}", ledger.seed, seed);
  LedgerMixture mixture{.begin = ledger.num_consumed, .entries = {}};
  std::set<std::string> ids;
  for (const auto& offer : offers) {
    HEARTH_CHECK(ids.insert(offer.id).second, Config,
                 "{}: the same dataset is listed twice; list it once, with the sum "
                 "of the weights",
                 offer.path);
    join_dataset(ledger, offer);
    mixture.entries.emplace_back(offer.id, offer.weight);
  }
  if (!fresh && ledger.mixtures.back().entries == mixture.entries) return ledger;
  if (!fresh && ledger.mixtures.back().begin == ledger.num_consumed)
    ledger.mixtures.pop_back();  // gave no sample
  ledger.mixtures.push_back(std::move(mixture));
  return ledger;
}

}  // namespace hearth
