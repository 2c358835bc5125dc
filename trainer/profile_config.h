// The `profile` section of the experiment file: a trace of a few steps (trainer/trace.h). Names as
// Megatron-LM's
// --profile-step-start, --profile-step-end and --profile-ranks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

struct ProfileConfig {
  bool enabled = false;
  int64_t step_start = 10;
  int64_t step_end = 12;
  std::vector<int64_t> ranks;
  bool operator==(const ProfileConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("enabled", enabled, OnResume::MayChange,
      "write a Chrome/Perfetto trace of some steps to the run folder's trace/rank_NNNN.json");
    v("step_start", step_start, OnResume::MayChange, "first step of the trace; from 3 on kernels are warm");
    v("step_end", step_end, OnResume::MayChange, "first step after the trace");
    v("ranks", ranks, OnResume::MayChange, "ranks that write one; empty = all");
  }
  void validate(ConfigErrors& e) const {
    e.require(step_start >= 1, "step_start", "must be >= 1, got {}", step_start);
    e.require(step_end > step_start, "step_end", "must be > step_start = {}, got {}", step_start, step_end);
    for (size_t i = 0; i < ranks.size(); ++i)
      e.require(ranks[i] >= 0, fmt::format("ranks[{}]", i), "must be >= 0, got {}", ranks[i]);
  }
  bool includes_rank(int rank) const {
    return enabled && (ranks.empty() || std::find(ranks.begin(), ranks.end(), rank) != ranks.end());
  }
};

}  // namespace hearth
