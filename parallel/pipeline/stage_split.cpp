#include "parallel/pipeline/stage_split.h"

#include <fmt/ranges.h>

#include <cmath>
#include <cstdint>
#include <utility>

#include "base/error.h"

namespace hearth {
namespace {

void check_request(int layers, int virtual_stages, const StageCosts& costs) {
  HEARTH_REQUIRE(virtual_stages >= 1, "split_layers: {} virtual stages", virtual_stages);
  HEARTH_REQUIRE(std::isfinite(costs.layer) && costs.layer > 0 && std::isfinite(costs.embedding) &&
                     costs.embedding >= 0 && std::isfinite(costs.head) && costs.head >= 0,
                 "split_layers: costs must be finite, layer > 0 and the others >= 0, got {}, {}, {}",
                 costs.layer, costs.embedding, costs.head);
  HEARTH_CHECK(layers >= virtual_stages, Config,
               "{} layers cannot be split into {} virtual pipeline stages (stages x chunks): each needs at "
               "least one layer; lower pipeline_model_parallel_size or virtual_pipeline_model_parallel_size",
               layers, virtual_stages);
}

// Layers are alike, so each in turn goes where it makes the least: no exchange can improve the largest sum.
std::vector<int> split_by_rank(int layers, const PipelineSchedule& schedule, const StageCosts& costs) {
  const int last = schedule.virtual_stages() - 1;
  std::vector<int> split(static_cast<size_t>(last) + 1, 1);
  const auto stage_cost = [&](int stage) {
    return split[static_cast<size_t>(stage)] * costs.layer + (stage == 0 ? costs.embedding : 0) +
           (stage == last ? costs.head : 0);
  };
  const auto rank_cost = [&](int stage) {
    double sum = 0;
    for (int chunk = 0; chunk < schedule.chunks; ++chunk)
      sum += stage_cost(schedule.virtual_stage(schedule.place(stage).rank, chunk));
    return sum;
  };
  for (int given = last + 1; given < layers; ++given) {
    int best = last;
    for (int stage = last - 1; stage >= 0; --stage)
      if (std::pair(rank_cost(stage), stage_cost(stage)) < std::pair(rank_cost(best), stage_cost(best)))
        best = stage;
    ++split[static_cast<size_t>(best)];
  }
  return split;
}

}  // namespace

std::vector<int> split_layers(int layers, const PipelineSchedule& schedule, const StageCosts& costs) {
  const int stages = schedule.virtual_stages();
  const bool ends_meet = schedule.stages > 1 && schedule.place(0).rank == schedule.place(stages - 1).rank;
  if (!ends_meet) return split_layers(layers, stages, costs);
  check_request(layers, stages, costs);
  return split_by_rank(layers, schedule, costs);
}

std::vector<int> split_layers(int layers, int virtual_stages, const StageCosts& costs) {
  check_request(layers, virtual_stages, costs);
  const int last = virtual_stages - 1;
  std::vector<int> split(static_cast<size_t>(virtual_stages), 1);
  const auto cost_with_one_more = [&](int stage) {
    return (split[static_cast<size_t>(stage)] + 1) * costs.layer + (stage == 0 ? costs.embedding : 0) +
           (stage == last ? costs.head : 0);
  };
  // Layers are alike, so each in turn goes where it makes the least: no exchange can improve the result.
  // Candidates stand in order of preference, and only a smaller cost beats an earlier one.
  std::vector<int> candidates;
  for (int stage = last - 1; stage >= 1; --stage) candidates.push_back(stage);
  candidates.push_back(last);
  if (last > 0) candidates.push_back(0);
  for (int given = virtual_stages; given < layers; ++given) {
    int best = candidates.front();
    for (const int stage : candidates)
      if (cost_with_one_more(stage) < cost_with_one_more(best)) best = stage;
    ++split[static_cast<size_t>(best)];
  }
  return split;
}

void check_split(const std::vector<int>& split, int layers, int virtual_stages) {
  HEARTH_CHECK(split.size() == static_cast<size_t>(virtual_stages), Config,
               "the split of layers [{}] has {} entries, expected one for each of {} virtual pipeline stages "
               "(stages x chunks)",
               fmt::join(split, ", "), split.size(), virtual_stages);
  int64_t sum = 0;
  for (const int count : split) {
    HEARTH_CHECK(count >= 1, Config,
                 "the split of layers [{}] gives a stage {} layers: each needs at least one",
                 fmt::join(split, ", "), count);
    sum += count;
  }
  HEARTH_CHECK(sum == layers, Config, "the split of layers [{}] adds up to {}, but the model has {}",
               fmt::join(split, ", "), sum, layers);
}

}  // namespace hearth
