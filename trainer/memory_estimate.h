// What a rank will hold at most, for `hearth train --dry-run`, `hearth plan` and beside the measured peaks of
// a run. Pure arithmetic: the shards and buckets of the rank's part of the model, and a replay of its
// pipeline actions. Bytes. Weights (trained, below adapters, of a teacher, of a reference), gradients and
// optimizer state are exact (weights that come and go under dualpipev: an upper bound). Of the activations,
// `kept` counts the tensors that the blocks save (trainer/model/block_functions.h) and `working` what the
// action that runs at the peak needs besides: a model of which temporaries live together, so the sum is right
// to within `working`. Not counted: validation, what NCCL and cuBLAS allocate for themselves, and
// half-precision attention masks on the CPU.
#pragma once

#include <cstdint>

#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/experiment_config.h"

namespace hearth {

struct MemoryEstimate {
  int64_t weights = 0, gradients = 0, optimizer = 0;
  int64_t kept = 0, working = 0;
  int64_t activations() const { return kept + working; }
  int64_t total() const { return weights + gradients + optimizer + activations(); }
};

// `config` is one that require_layout() accepts for the mesh, `schedule` is pipeline_schedule(config, mesh).
// `teacher`: the shape of the one that answers on the same ranks; null where there is none.
MemoryEstimate estimate_memory(const ExperimentConfig& config, const Mesh& mesh,
                               const PipelineSchedule& schedule, int rank, const ModelConfig* teacher);

// The rank with the largest total; of the ranks that share a pipeline stage, which hold alike, the first.
struct HeaviestRank {
  int rank = 0;
  MemoryEstimate memory;
};
HeaviestRank heaviest_rank(const ExperimentConfig& config, const Mesh& mesh, const ModelConfig* teacher);

}  // namespace hearth
