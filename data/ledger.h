// The consumption ledger: exactly which windows of which shards a run has used. It lives in the checkpoint's
// state.json; the sample stream is a pure function of it. Global: it does not know the number of ranks.
//
// A dataset's epoch is a chain of generations. Generation 0 permutes the windows of the shards known when the
// epoch began. When shards are appended, a new generation permutes what was left of the previous one plus the
// new windows, so nothing is repeated and nothing skipped, and position -> window stays computable without a
// table. Value types: copy = snapshot, == defined. Functions are pure and thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/permutation.h"

namespace hearth {

struct LedgerShard {
  std::string file;    // for messages
  std::string digest;  // identity
  int64_t num_windows = 0;
  bool operator==(const LedgerShard&) const = default;
};

struct LedgerGeneration {
  int64_t num_shards = 0;  // shards known: the first num_shards of the dataset's list
  int64_t consumed = 0;    // windows used in this generation
  bool operator==(const LedgerGeneration&) const = default;
};

// `count` successive epochs that went alike; count > 1 only for finished epochs of a single generation.
struct LedgerEpochs {
  int64_t first = 0;
  int64_t count = 1;
  std::vector<LedgerGeneration> generations;
  bool operator==(const LedgerEpochs&) const = default;
};

struct DatasetLedger {
  std::string id;    // Dataset::id()
  std::string path;  // where it was last seen, for messages
  int64_t consumed = 0;
  std::vector<LedgerShard> shards;   // in the order in which they appeared
  std::vector<LedgerEpochs> epochs;  // the last one is the current epoch and is never finished
  bool operator==(const DatasetLedger&) const = default;
};

struct LedgerMixture {
  int64_t begin = 0;  // global sample index from which it holds
  std::vector<std::pair<std::string, double>>
      entries;  // dataset id, weight; in the order of the experiment file
  bool operator==(const LedgerMixture&) const = default;
};

struct DataLedger {
  uint64_t seed = 0;
  int64_t seq_length = 0;
  int64_t num_consumed = 0;             // samples, over all datasets
  std::vector<LedgerMixture> mixtures;  // history; the last one is current
  std::vector<DatasetLedger> datasets;  // also those that left the mixture: they continue if they come back
  bool operator==(const DataLedger&) const = default;
};

// An object with "format": "hearth.data_ledger". Reading is strict: Error{Corrupt} for anything that is not a
// consistent ledger (counts that do not add up, unknown keys, a finished current epoch).
nlohmann::json ledger_to_json(const DataLedger& ledger);
DataLedger ledger_from_json(const nlohmann::json& json);

// What a job offers at its start.
struct LedgerOffer {
  std::string id;
  std::string path;
  double weight = 1;
  std::vector<LedgerShard> shards;
};
// Joins a ledger (fresh: DataLedger{}) with the datasets of this job: appended shards open a new generation,
// a changed mixture begins at the current sample. Throws Error{Config}: other seed or seq_length, a shard of
// the ledger that is missing or changed (named), a dataset offered twice, a dataset without a whole window.
DataLedger continue_ledger(DataLedger ledger, uint64_t seed, int64_t seq_length,
                           std::span<const LedgerOffer> offers);

// Windows available in an epoch of these generations, consumed ones included.
int64_t pool_size(const DatasetLedger& dataset, std::span<const LedgerGeneration> generations);
// Records that `windows` more windows of the dataset were used.
void advance(DatasetLedger& dataset, int64_t windows);

// Position -> window for one epoch: the chain of its generations, resolved. Thread-safe once built.
class EpochWindows {
 public:
  EpochWindows(const DatasetLedger& dataset, uint64_t seed, int64_t epoch,
               std::span<const LedgerGeneration> generations);
  // Window number (in shard order) at `position` of generation `generation`; 0 <= position <
  // pool(generation).
  int64_t window(size_t generation, int64_t position) const;
  int64_t pool(size_t generation) const { return links_.at(generation).permutation.size(); }

 private:
  struct Link {
    Permutation permutation;  // of the pool: what the previous generation left, then the new windows
    int64_t left_over;        // pool entries that come from the previous generation
    int64_t previous_used;    // position in the previous generation at which its rest begins
    int64_t first_new;        // window number of the first new window
  };
  std::vector<Link> links_;
};

// What a dataset gives from the ledger's point on. Thread-safe once built.
class DatasetCursor {
 public:
  DatasetCursor(const DatasetLedger& dataset, uint64_t seed);
  struct Position {
    int64_t epoch = 0;
    int64_t window = 0;  // in shard order
  };
  Position ahead(int64_t windows) const;  // `windows` >= 0 windows after the ledger's point

 private:
  DatasetLedger dataset_;
  uint64_t seed_;
  EpochWindows current_;
  int64_t total_windows_;
};

// Proof: walks everything that the ledger says was used. Throws Error{Corrupt} naming dataset, epoch and
// window at the first window that came twice or, in a finished epoch, not at all, and where the mixture's
// counts do not add up.
struct AuditReport {
  int64_t num_consumed = 0;
  int64_t epochs_finished = 0;  // over all datasets
  int64_t windows_checked = 0;
};
AuditReport audit_ledger(const DataLedger& ledger);
// `later` must continue `earlier`: same seed, everything used before still used in the same way.
// Error{Corrupt} if not.
void audit_succession(const DataLedger& earlier, const DataLedger& later);

}  // namespace hearth
