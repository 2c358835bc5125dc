// The `data` section of the experiment file: which token datasets a run reads and how windows are cut from
// them. Plain data, no rank logic. Paths are relative to the working directory.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

// One dataset folder (holds dataset.json) of a mixture.
struct DatasetEntry {
  std::string path;
  double weight = 1.0;  // relative; only ratios between the entries of one list matter
  bool operator==(const DatasetEntry&) const = default;
  template <class V>
  void visit(V&& v) {
    v("path", path, OnResume::MayChange,
      "folder with dataset.json, as `hearth data prepare` writes it; required");
    v("weight", weight, OnResume::MayChange, "share of the samples, relative to the other entries");
  }
  void validate(ConfigErrors& e) const {
    e.require(!path.empty(), "path", "is required: a folder that `hearth data prepare` wrote");
    e.require(std::isfinite(weight) && weight > 0, "weight", "must be finite and > 0, got {}", weight);
  }
};

struct DataConfig {
  std::vector<DatasetEntry> train;
  std::vector<DatasetEntry> validation;
  int64_t seq_length = 2048;
  bool reset_attention_mask = true;
  bool operator==(const DataConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    // The mixture may change: the consumption ledger of the checkpoint skips what was read already.
    v("train", train, OnResume::MayChange, "datasets to train on; at least one");
    v("validation", validation, OnResume::MayChange, "held-out datasets; empty = no evaluation");
    v("seq_length", seq_length, OnResume::Frozen, "tokens per sample");
    v("reset_attention_mask", reset_attention_mask, OnResume::MustConfirm,
      "attention never crosses a document's border within a sample");
  }
  void validate(ConfigErrors& e) const {
    e.require(!train.empty(), "train", "needs at least one dataset, for example [{{path: shards/train}}]");
    validate_entries(e, "train", train);
    validate_entries(e, "validation", validation);
    e.require(seq_length > 0, "seq_length", "must be > 0, got {}", seq_length);
  }

 private:
  static void validate_entries(ConfigErrors& e, std::string_view list,
                               const std::vector<DatasetEntry>& entries) {
    for (size_t i = 0; i < entries.size(); ++i) {
      const ConfigErrors::Scope scope(e, fmt::format("{}[{}]", list, i));
      entries[i].validate(e);
    }
  }
};

}  // namespace hearth
