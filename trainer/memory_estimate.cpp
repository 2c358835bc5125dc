#include "trainer/memory_estimate.h"

#include <optional>

#include "trainer/activation_replay.h"
#include "trainer/parallel_layout.h"
#include "trainer/parallel_model.h"
#include "trainer/state_replay.h"
#include "trainer/weight_replay.h"

namespace hearth {
namespace {

// The models of a rank, and the order in which a step uses their weights.
class ModelsReplay {
 public:
  ModelsReplay(const ExperimentConfig& config, const Mesh& mesh, const PipelineSchedule& schedule, int rank,
               int64_t data_ranks, const ModelConfig* teacher)
      : config_(config),
        trained_(config.model, model_partition(config, mesh, schedule, rank),
                 recompute_choice(config.recompute).every_layers, total_) {
    const ModelPartition partition = model_partition(config, mesh, schedule, rank);
    const StoreOptions options = store_options(config, data_ranks, at::kCPU);
    const auto shards = parameter_shards(config.model, partition);
    const auto frozen = [&](FrozenForm form) {
      return frozen_store_options(form, options.dtype, data_ranks, at::kCPU);
    };
    const FrozenForm whole_or_split = frozen_form(config.parallel.zero_stage, data_ranks);
    const bool adapters = config.objective.lora_rank > 0;
    if (adapters) {
      trained_.add_store(shards, frozen(base_form(config, data_ranks)));
      trained_.add_store(lora_shards(config.model, partition, config.objective.lora()), options);
    } else {
      trained_.add_store(shards, options);
    }
    if (config.objective.kind == "dpo" && !adapters) {  // else the reference is what lies below the adapters
      asked_.emplace(config.model, partition, /*recompute_every_layers=*/0, total_);
      asked_->add_store(shards, frozen(whole_or_split));
    } else if (teacher != nullptr) {
      ModelConfig shape = *teacher;
      shape.vocab_size = config.model.vocab_size;
      const ExperimentConfig around = frozen_model_config(config, shape);
      const ModelPartition part = model_partition(around, mesh, pipeline_schedule(around, mesh), rank);
      asked_.emplace(shape, part, /*recompute_every_layers=*/0, total_);
      asked_->add_store(parameter_shards(shape, part), frozen(whole_or_split));
    }
    if (!adapters) trained_.begin();
    ahead_ = schedule.virtual_stages() > 1;
    // Twice: what one micro-batch leaves is there for the next.
    for (int i = 0; ahead_ && i < 2; ++i) ask();
  }

  void perform(const Action& action) {
    switch (action.kind) {
      case ActionKind::Forward:
        return forward(action.chunk);
      case ActionKind::Backward:
      case ActionKind::BackwardInput:
        return trained_.backward(action.chunk);
      case ActionKind::ForwardBackward:
        return trained_.forward_and_backward(action.chunk, action.backward_chunk);
      default:
        return;
    }
  }

  int64_t peak_weights() const { return total_.peak; }

 private:
  void ask() {
    if (!asked_) return;
    asked_->hidden();
    if (config_.objective.kind != "dpo") return;
    asked_->hold_head();  // for log-probabilities
    asked_->drop_head();
  }

  void forward(int chunk) {
    if (!ahead_) ask();
    trained_.layers(chunk);
    if (!trained_.has_head(chunk)) return;
    const bool dpo = config_.objective.kind == "dpo", distils = asked_ && !dpo;
    if (distils) asked_->hold_head();
    trained_.loss(dpo ? WeightReplay::Head::LogprobsAndLoss : WeightReplay::Head::Loss);
    if (distils) asked_->drop_head();
  }

  const ExperimentConfig& config_;
  PeakBytes total_;
  WeightReplay trained_;
  std::optional<WeightReplay> asked_;  // a teacher, or a reference with weights of its own
  bool ahead_ = false;                 // all micro-batches are asked about before the first action
};

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
    case ActionKind::ForwardBackward:  // by turns: the head's gradient counts beside all of the backward's
      state.forward(action.chunk);
      return state.backward(action.backward_chunk, action.backward_micro, /*deferred=*/false);
    default:
      return;
  }
}

}  // namespace

MemoryEstimate estimate_memory(const ExperimentConfig& config, const Mesh& mesh,
                               const PipelineSchedule& schedule, int rank, const ModelConfig* teacher) {
  const ModelPartition partition = model_partition(config, mesh, schedule, rank);
  const int64_t data_ranks = int64_t{mesh.size(MeshAxis::Dp)} * mesh.size(MeshAxis::Cp) /
                             config.parallel.num_distributed_optimizer_instances;
  const auto& actions = schedule.ranks[static_cast<size_t>(mesh.coordinate(rank, MeshAxis::Pp))];
  ActivationReplay activations(activation_sizes(config, mesh), partition);
  ModelsReplay models(config, mesh, schedule, rank, data_ranks, teacher);
  const LoraShape lora = config.objective.lora();
  const auto trained =
      lora.rank > 0 ? lora_shards(config.model, partition, lora) : parameter_shards(config.model, partition);
  StateReplay state(config.model, partition, trained, store_options(config, data_ranks, at::kCPU),
                    config.parallel.zero_stage, config.precision.optimizer_bytes());
  for (const Action& action : actions) {
    activations.perform(action);
    models.perform(action);
    replay(state, action);
  }
  return {.weights = models.peak_weights(),
          .gradients = state.peak_gradients(),
          .optimizer = state.optimizer(),
          .kept = activations.peak_kept(),
          .working = activations.peak_working()};
}

HeaviestRank heaviest_rank(const ExperimentConfig& config, const Mesh& mesh, const ModelConfig* teacher) {
  const PipelineSchedule schedule = pipeline_schedule(config, mesh);
  HeaviestRank heaviest;
  Mesh::Coordinates at{};
  for (int stage = 0; stage < mesh.size(MeshAxis::Pp); ++stage) {
    at[static_cast<size_t>(MeshAxis::Pp)] = stage;
    const int rank = mesh.rank(at);
    const MemoryEstimate memory = estimate_memory(config, mesh, schedule, rank, teacher);
    if (memory.total() > heaviest.memory.total()) heaviest = {rank, memory};
  }
  return heaviest;
}

}  // namespace hearth
