// From the experiment file and the mesh to what one rank does: its pipeline schedule and its part of the
// model. Pure.
#pragma once

#include <vector>

#include "base/error.h"
#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/placement.h"
#include "trainer/experiment_config.h"
#include "trainer/model/model_partition.h"

namespace hearth {

// Of the ranks that serve a teacher, counted from 0; objective.teacher_ranks divides into
// objective.teacher_parallel.
inline Mesh teacher_mesh(const ObjectiveConfig& config) {
  const auto tensor = checked_cast<int>(config.teacher_parallel.tensor_model_parallel_size),
             stages = checked_cast<int>(config.teacher_parallel.pipeline_model_parallel_size);
  return Mesh(
      {stages, checked_cast<int>(config.teacher_ranks) / (stages * tensor), /*cp=*/1, /*ep=*/1, tensor});
}

// The job whose ranks that train have `mesh`.
inline std::vector<MeshPart> mesh_parts(const ObjectiveConfig& config, const Mesh& mesh) {
  std::vector<MeshPart> parts{{"", mesh}};
  if (config.teacher_ranks > 0) parts.push_back({"teacher", teacher_mesh(config)});
  return parts;
}

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
