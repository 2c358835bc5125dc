// From the experiment file and the mesh to what one rank does: its pipeline schedule and its part of the
// model. Pure.
#pragma once

#include <vector>

#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/experiment_config.h"
#include "trainer/model/model_partition.h"

namespace hearth {

// Micro-batches per step and data-parallel rank.
int64_t micro_batches_per_step(const ExperimentConfig& config, const Mesh& mesh);
// With transfers. Throws Error{Config} for counts that the schedule cannot take.
PipelineSchedule pipeline_schedule(const ExperimentConfig& config, const Mesh& mesh);
// Layers per virtual stage: parallel.pipeline_model_parallel_layout, or the split that balances flops, head
// included.
std::vector<int> layers_per_stage(const ExperimentConfig& config, const PipelineSchedule& schedule);
ModelPartition model_partition(const ExperimentConfig& config, const Mesh& mesh,
                               const PipelineSchedule& schedule, int rank);

}  // namespace hearth
