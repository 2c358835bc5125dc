#include "trainer/memory_estimate.h"

#include "trainer/activation_replay.h"
#include "trainer/parallel_layout.h"
#include "trainer/parallel_model.h"
#include "trainer/state_replay.h"

namespace hearth {
namespace {

void replay(StateReplay& state, const Action& action) {
  switch (action.kind) {
    case ActionKind::Forward:
      return state.forward(action.chunk);
    case ActionKind::Backward:
      return state.backward(action.chunk, action.micro, /*deferred=*/false);
    case ActionKind::BackwardInput:
      return state.backward(action.chunk, action.micro, /*deferred=*/true);
    case ActionKind::BackwardWeight:
      return state.weight_gradients(action.chunk, action.micro);
    case ActionKind::ForwardBackward:
      return state.forward_and_backward(action.chunk, action.backward_chunk, action.backward_micro);
    default:
      return;
  }
}

}  // namespace

MemoryEstimate estimate_memory(const ExperimentConfig& config, const Mesh& mesh,
                               const PipelineSchedule& schedule, int rank) {
  const ModelPartition partition = model_partition(config, mesh, schedule, rank);
  const int64_t data_ranks = int64_t{mesh.size(MeshAxis::Dp)} * mesh.size(MeshAxis::Cp) /
                             config.parallel.num_distributed_optimizer_instances;
  StateReplay state(config.model, partition, store_options(config, data_ranks, at::kCPU),
                    config.parallel.zero_stage, recompute_choice(config.recompute).every_layers);
  ActivationReplay activations(activation_sizes(config, mesh), partition);
  for (const Action& action : schedule.ranks[static_cast<size_t>(mesh.coordinate(rank, MeshAxis::Pp))]) {
    replay(state, action);
    activations.perform(action);
  }
  return {.weights = state.peak_weights(),
          .gradients = state.peak_gradients(),
          .optimizer = state.optimizer(),
          .kept = activations.peak_kept(),
          .working = activations.peak_working()};
}

HeaviestRank heaviest_rank(const ExperimentConfig& config, const Mesh& mesh) {
  const PipelineSchedule schedule = pipeline_schedule(config, mesh);
  HeaviestRank heaviest;
  Mesh::Coordinates at{};
  for (int stage = 0; stage < mesh.size(MeshAxis::Pp); ++stage) {
    at[static_cast<size_t>(MeshAxis::Pp)] = stage;
    const int rank = mesh.rank(at);
    const MemoryEstimate memory = estimate_memory(config, mesh, schedule, rank);
    if (memory.total() > heaviest.memory.total()) heaviest = {rank, memory};
  }
  return heaviest;
}

}  // namespace hearth
