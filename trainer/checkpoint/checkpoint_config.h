// The `checkpoint` section of the experiment file: where a run lives and what it keeps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/config_visit.h"

namespace hearth {

struct CheckpointConfig {
  std::string save = "runs/mine";
  int64_t save_interval = 100;
  int64_t keep_latest_k = 3;
  bool async_save = true;
  std::optional<std::string> load;
  bool operator==(const CheckpointConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("save", save, OnResume::MayChange, "run folder: config.yaml, metrics.jsonl, log/, checkpoints/");
    v("save_interval", save_interval, OnResume::MayChange,
      "steps between checkpoints; 0 = only the last step");
    v("keep_latest_k", keep_latest_k, OnResume::MayChange, "older checkpoints are removed; 0 = keep all");
    v("async_save", async_save, OnResume::MayChange,
      "write in the background; the loop pays only for the copy");
    v("load", load, OnResume::MayChange, "checkpoint or run folder to continue from; missing is an error");
  }
  void validate(ConfigErrors& e) const {
    e.require(!save.empty(), "save", "must name a folder");
    e.require(save_interval >= 0, "save_interval", "must be >= 0 (0 = only the last step), got {}",
              save_interval);
    e.require(keep_latest_k >= 0, "keep_latest_k", "must be >= 0 (0 = keep all), got {}", keep_latest_k);
    e.require(!load || !load->empty(), "load", "must name a checkpoint or be null");
  }
};

}  // namespace hearth
