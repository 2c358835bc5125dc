// The ledger as JSON: writing, and reading with every invariant checked.
#include <algorithm>

#include "base/error.h"
#include "data/json_object.h"
#include "data/ledger.h"

namespace hearth {
namespace {

using nlohmann::json;

json epochs_json(const LedgerEpochs& epochs) {
  json generations = json::array();
  for (const auto& g : epochs.generations)
    generations.push_back({{"num_shards", g.num_shards}, {"consumed", g.consumed}});
  return {{"first", epochs.first}, {"count", epochs.count}, {"generations", generations}};
}

json dataset_json(const DatasetLedger& dataset) {
  json shards = json::array(), epochs = json::array();
  for (const auto& s : dataset.shards) {
    shards.push_back({{"file", s.file}, {"digest", s.digest}, {"num_windows", s.num_windows}});
  }
  for (const auto& e : dataset.epochs) epochs.push_back(epochs_json(e));
  return {{"id", dataset.id},
          {"path", dataset.path},
          {"consumed", dataset.consumed},
          {"shards", shards},
          {"epochs", epochs}};
}

JsonObject child(const JsonObject& parent, const std::string& key, const json& array, size_t index) {
  return {array[index], parent.place(key, index), ErrorKind::Corrupt};
}

LedgerEpochs read_epochs(JsonObject object) {
  LedgerEpochs epochs{object.count("first"), object.integer("count", 1, INT64_MAX), {}};
  const json& generations = object.array("generations");
  for (size_t i = 0; i < generations.size(); ++i) {
    JsonObject item = child(object, "generations", generations, i);
    epochs.generations.push_back({item.integer("num_shards", 1, INT32_MAX), item.count("consumed")});
    item.finish();
  }
  object.finish();
  return epochs;
}

// Windows used in one epoch of the record. Throws where its chain of generations does not fit together.
int64_t used_per_epoch(const DatasetLedger& dataset, const LedgerEpochs& epochs, const std::string& where) {
  const auto& chain = epochs.generations;
  HEARTH_CHECK(!chain.empty(), Corrupt, "{}: an epoch without generations", where);
  int64_t used = 0;
  for (size_t i = 0; i < chain.size(); ++i) {
    const bool known = chain[i].num_shards <= static_cast<int64_t>(dataset.shards.size()) &&
                       (i == 0 || chain[i].num_shards > chain[i - 1].num_shards);
    HEARTH_CHECK(known, Corrupt,
                 "{}: epoch {}: generation {} has {} shards, which does not fit the list of {}", where,
                 epochs.first, i, chain[i].num_shards, dataset.shards.size());
    const int64_t pool = pool_size(dataset, std::span(chain).first(i + 1));
    HEARTH_CHECK(chain[i].consumed <= pool && (i + 1 == chain.size() || chain[i].consumed < pool), Corrupt,
                 "{}: epoch {}: generation {} used {} of {} windows", where, epochs.first, i,
                 chain[i].consumed, pool);
    used = checked_add(used, chain[i].consumed);
  }
  return used;
}

void check_dataset(const DatasetLedger& dataset, const std::string& where) {
  HEARTH_CHECK(!dataset.epochs.empty() && !dataset.shards.empty(), Corrupt, "{}: no epochs or no shards",
               where);
  int64_t next_epoch = 0, consumed = 0;
  for (size_t i = 0; i < dataset.epochs.size(); ++i) {
    const LedgerEpochs& epochs = dataset.epochs[i];
    const bool current = i + 1 == dataset.epochs.size();
    const int64_t used = used_per_epoch(dataset, epochs, where);
    const auto& last = epochs.generations.back();
    const bool finished = last.consumed == pool_size(dataset, epochs.generations);
    HEARTH_CHECK(epochs.first == next_epoch && finished == !current, Corrupt,
                 "{}: epoch {} is out of order, or {}", where, epochs.first,
                 current ? "the current epoch is finished" : "a past epoch is not finished");
    HEARTH_CHECK(epochs.count == 1 || (!current && epochs.generations.size() == 1), Corrupt,
                 "{}: epoch {}: only plain finished epochs may be counted together", where, epochs.first);
    HEARTH_CHECK(!current || last.num_shards == static_cast<int64_t>(dataset.shards.size()), Corrupt,
                 "{}: the current epoch knows {} of {} shards", where, last.num_shards,
                 dataset.shards.size());
    next_epoch = checked_add(next_epoch, epochs.count);
    consumed = checked_add(consumed, checked_mul(used, epochs.count));
  }
  HEARTH_CHECK(consumed == dataset.consumed, Corrupt, "{}: epochs add up to {} windows, 'consumed' says {}",
               where, consumed, dataset.consumed);
}

DatasetLedger read_dataset(JsonObject object) {
  DatasetLedger dataset{object.text("id"), object.text("path"), object.count("consumed"), {}, {}};
  const json& shards = object.array("shards");
  for (size_t i = 0; i < shards.size(); ++i) {
    JsonObject item = child(object, "shards", shards, i);
    dataset.shards.push_back(
        {item.text("file"), item.text("digest"), item.integer("num_windows", 0, INT32_MAX)});
    item.finish();
  }
  const json& epochs = object.array("epochs");
  for (size_t i = 0; i < epochs.size(); ++i)
    dataset.epochs.push_back(read_epochs(child(object, "epochs", epochs, i)));
  object.finish();
  check_dataset(dataset, object.where());
  return dataset;
}

LedgerMixture read_mixture(JsonObject object) {
  LedgerMixture mixture{object.count("begin"), {}};
  const json& entries = object.array("entries");
  for (size_t i = 0; i < entries.size(); ++i) {
    JsonObject item = child(object, "entries", entries, i);
    mixture.entries.emplace_back(item.text("dataset"), item.number("weight"));
    item.finish();
  }
  object.finish();
  return mixture;
}

void check_ledger(const DataLedger& ledger) {
  int64_t consumed = 0;
  for (const auto& dataset : ledger.datasets) consumed = checked_add(consumed, dataset.consumed);
  HEARTH_CHECK(consumed == ledger.num_consumed, Corrupt,
               "data ledger: datasets add up to {} samples, the total says {}", consumed,
               ledger.num_consumed);
  HEARTH_CHECK(!ledger.mixtures.empty() && ledger.mixtures.front().begin == 0 &&
                   ledger.mixtures.back().begin <= ledger.num_consumed,
               Corrupt, "data ledger: mixtures do not cover the samples used");
  for (size_t i = 0; i < ledger.mixtures.size(); ++i) {
    HEARTH_CHECK(i == 0 || ledger.mixtures[i].begin > ledger.mixtures[i - 1].begin, Corrupt,
                 "data ledger: mixture {} begins at sample {}, not after the one before", i,
                 ledger.mixtures[i].begin);
    for (const auto& [id, weight] : ledger.mixtures[i].entries) {
      const bool known = std::any_of(ledger.datasets.begin(), ledger.datasets.end(),
                                     [&, &wanted = id](const auto& dataset) { return dataset.id == wanted; });
      HEARTH_CHECK(known && weight > 0, Corrupt, "data ledger: mixture {} names dataset '{}' with weight {}",
                   i, id, weight);
    }
  }
}

}  // namespace

json ledger_to_json(const DataLedger& ledger) {
  json mixtures = json::array(), datasets = json::array();
  for (const auto& mixture : ledger.mixtures) {
    json entries = json::array();
    for (const auto& [id, weight] : mixture.entries) entries.push_back({{"dataset", id}, {"weight", weight}});
    mixtures.push_back({{"begin", mixture.begin}, {"entries", entries}});
  }
  for (const auto& dataset : ledger.datasets) datasets.push_back(dataset_json(dataset));
  return {{"format", "hearth.data_ledger"},
          {"version", 1},
          {"seed", ledger.seed},
          {"seq_length", ledger.seq_length},
          {"num_consumed", ledger.num_consumed},
          {"mixtures", mixtures},
          {"datasets", datasets}};
}

DataLedger ledger_from_json(const json& value) {
  JsonObject object(value, "data ledger", ErrorKind::Corrupt);
  const std::string format = object.text("format");
  HEARTH_CHECK(format == "hearth.data_ledger", Corrupt, "data ledger: format is '{}'", format);
  const int64_t version = object.count("version");
  HEARTH_CHECK(version == 1, Corrupt, "data ledger: version {} is not the supported 1", version);
  DataLedger ledger;
  ledger.seed = object.unsigned_integer("seed");
  ledger.seq_length = object.integer("seq_length", 1, INT32_MAX);
  ledger.num_consumed = object.count("num_consumed");
  const json& mixtures = object.array("mixtures");
  for (size_t i = 0; i < mixtures.size(); ++i) {
    ledger.mixtures.push_back(read_mixture(child(object, "mixtures", mixtures, i)));
  }
  const json& datasets = object.array("datasets");
  for (size_t i = 0; i < datasets.size(); ++i) {
    ledger.datasets.push_back(read_dataset(child(object, "datasets", datasets, i)));
  }
  object.finish();
  check_ledger(ledger);
  return ledger;
}

}  // namespace hearth
