// The proof from a ledger that no window came twice and none was left out: every position that the ledger
// says was used is turned into its window and ticked off in a bitmap.
#include <algorithm>
#include <map>

#include "base/error.h"
#include "data/blend.h"
#include "data/ledger.h"

namespace hearth {
namespace {

// One epoch: returns the number of windows ticked off.
int64_t audit_epoch(const DatasetLedger& dataset, uint64_t seed, int64_t epoch, const LedgerEpochs& record,
                    bool finished) {
  const EpochWindows windows(dataset, seed, epoch, record.generations);
  int64_t total = 0;
  for (int64_t i = 0; i < record.generations.back().num_shards; ++i) {
    total += dataset.shards[static_cast<size_t>(i)].num_windows;
  }
  std::vector<bool> used(static_cast<size_t>(total));
  int64_t count = 0;
  for (size_t g = 0; g < record.generations.size(); ++g) {
    for (int64_t position = 0; position < record.generations[g].consumed; ++position, ++count) {
      const int64_t window = windows.window(g, position);
      HEARTH_CHECK(window >= 0 && window < total, Corrupt, "{}: epoch {}: window {} of {} does not exist",
                   dataset.path, epoch, window, total);
      HEARTH_CHECK(!used[static_cast<size_t>(window)], Corrupt, "{}: epoch {}: window {} was used twice",
                   dataset.path, epoch, window);
      used[static_cast<size_t>(window)] = true;
    }
  }
  HEARTH_CHECK(!finished || count == total, Corrupt, "{}: epoch {} ended after {} of {} windows",
               dataset.path, epoch, count, total);
  return count;
}

// Samples that the mixtures' blends gave each dataset must be what the dataset's ledger counts.
void audit_mixtures(const DataLedger& ledger) {
  std::map<std::string, int64_t> given;
  for (size_t i = 0; i < ledger.mixtures.size(); ++i) {
    const LedgerMixture& mixture = ledger.mixtures[i];
    const int64_t end = i + 1 < ledger.mixtures.size() ? ledger.mixtures[i + 1].begin : ledger.num_consumed;
    std::vector<double> weights;
    for (const auto& entry : mixture.entries) weights.push_back(entry.second);
    const Blend blend(weights);
    for (size_t source = 0; source < weights.size(); ++source) {
      given[mixture.entries[source].first] += blend.count(static_cast<int32_t>(source), end - mixture.begin);
    }
  }
  for (const auto& dataset : ledger.datasets) {
    HEARTH_CHECK(given[dataset.id] == dataset.consumed, Corrupt,
                 "{}: the mixtures gave {} samples of it, its ledger counts {}", dataset.path,
                 given[dataset.id], dataset.consumed);
  }
}

const LedgerEpochs& record_of(const DatasetLedger& dataset, int64_t epoch) {
  for (const auto& record : dataset.epochs) {
    if (epoch >= record.first && epoch < record.first + record.count) return record;
  }
  fail(ErrorKind::Corrupt, "{}: the later ledger knows no epoch {}", dataset.path, epoch);
}

// The later chain of an epoch must begin with what the earlier ledger had used of it.
void check_chain(const DatasetLedger& dataset, int64_t epoch, const std::vector<LedgerGeneration>& earlier,
                 const std::vector<LedgerGeneration>& later) {
  bool same = later.size() >= earlier.size();
  for (size_t i = 0; same && i < earlier.size(); ++i) {
    const bool last = i + 1 == earlier.size();
    const bool shards_same =
        earlier[i].num_shards == later[i].num_shards || (last && earlier[i].consumed == 0);
    same = shards_same && (last ? later[i].consumed >= earlier[i].consumed : later[i] == earlier[i]);
  }
  HEARTH_CHECK(same, Corrupt,
               "{}: epoch {}: the later ledger does not continue what the earlier one had used", dataset.path,
               epoch);
}

void check_dataset_succession(const DatasetLedger& earlier, const DatasetLedger& later) {
  for (size_t i = 0; i < earlier.shards.size(); ++i) {
    HEARTH_CHECK(i < later.shards.size() && later.shards[i].digest == earlier.shards[i].digest, Corrupt,
                 "{}: shard {} is another one in the later ledger", earlier.path, earlier.shards[i].file);
  }
  for (const auto& record : earlier.epochs) {
    // The ends of a run of equal epochs decide: the later ledger merges runs, it never splits them.
    for (const int64_t epoch : {record.first, record.first + record.count - 1}) {
      check_chain(earlier, epoch, record.generations, record_of(later, epoch).generations);
    }
  }
}

}  // namespace

AuditReport audit_ledger(const DataLedger& ledger) {
  AuditReport report{.num_consumed = ledger.num_consumed};
  for (const auto& dataset : ledger.datasets) {
    int64_t counted = 0;
    for (const auto& record : dataset.epochs) {
      const bool finished = &record != &dataset.epochs.back();
      for (int64_t i = 0; i < record.count; ++i) {
        counted += audit_epoch(dataset, ledger.seed, record.first + i, record, finished);
      }
      if (finished) report.epochs_finished += record.count;
    }
    HEARTH_CHECK(counted == dataset.consumed, Corrupt, "{}: epochs hold {} windows, 'consumed' says {}",
                 dataset.path, counted, dataset.consumed);
    report.windows_checked += counted;
  }
  HEARTH_CHECK(report.windows_checked == ledger.num_consumed, Corrupt,
               "datasets gave {} samples, the ledger counts {}", report.windows_checked, ledger.num_consumed);
  audit_mixtures(ledger);
  return report;
}

void audit_succession(const DataLedger& earlier, const DataLedger& later) {
  HEARTH_CHECK(earlier.seed == later.seed && earlier.seq_length == later.seq_length, Corrupt,
               "ledgers of two different streams: seed {} and {}, seq_length {} and {}", earlier.seed,
               later.seed, earlier.seq_length, later.seq_length);
  HEARTH_CHECK(earlier.num_consumed <= later.num_consumed, Corrupt,
               "the later ledger counts {} samples, the earlier {}", later.num_consumed,
               earlier.num_consumed);
  for (const auto& dataset : earlier.datasets) {
    const auto found = std::find_if(later.datasets.begin(), later.datasets.end(),
                                    [&](const DatasetLedger& other) { return other.id == dataset.id; });
    HEARTH_CHECK(found != later.datasets.end(), Corrupt, "{}: the later ledger forgot this dataset",
                 dataset.path);
    check_dataset_succession(dataset, *found);
  }
  for (size_t i = 0; i < earlier.mixtures.size(); ++i) {
    if (earlier.mixtures[i].begin == earlier.num_consumed)
      continue;  // gave no sample yet, so it may be replaced
    HEARTH_CHECK(i < later.mixtures.size() && later.mixtures[i] == earlier.mixtures[i], Corrupt,
                 "mixture {} is another one in the later ledger", i);
  }
}

}  // namespace hearth
