#include "trainer/memory_estimate.h"

#include "trainer/activation_replay.h"
#include "trainer/parallel_layout.h"
#include "trainer/parallel_model.h"
#include "trainer/state_replay.h"

namespace hearth {
namespace {

// Of all buckets, holes and padding included.
int64_t store_bytes(const std::vector<ParameterShard>& shards, const StoreOptions& options) {
  return storage_plan(shards, options).plan.arena_count() * size_bytes(options.dtype);
}

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
  const StoreOptions options = store_options(config, data_ranks, at::kCPU);
  ActivationReplay activations(activation_sizes(config, mesh), partition);
  const auto& actions = schedule.ranks[static_cast<size_t>(mesh.coordinate(rank, MeshAxis::Pp))];
  for (const Action& action : actions) activations.perform(action);
  // The model below adapters, and the reference of preference pairs, which is another copy without adapters.
  const int64_t model_bytes =
      store_bytes(parameter_shards(config.model, partition), StoreOptions{.dtype = options.dtype});
  const bool adapters = config.objective.lora_rank > 0;
  const int64_t reference = config.objective.kind == "dpo" && !adapters ? model_bytes : 0;
  if (adapters) {
    const auto shards = lora_shards(config.model, partition, config.objective.lora());
    const int64_t elements = store_bytes(shards, options) / size_bytes(options.dtype),
                  owned = config.parallel.zero_stage >= 1 ? elements / data_ranks : elements;
    return {.weights = model_bytes + elements * size_bytes(options.dtype),
            .gradients = elements * 4,
            .optimizer = owned * config.precision.optimizer_bytes(),
            .kept = activations.peak_kept(),
            .working = activations.peak_working()};
  }
  StateReplay state(config.model, partition, options, config.parallel.zero_stage,
                    recompute_choice(config.recompute).every_layers, config.precision.optimizer_bytes());
  for (const Action& action : actions) replay(state, action);
  return {.weights = state.peak_weights() + reference,
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
