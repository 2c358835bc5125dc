#include "trainer/parallel_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "trainer/device.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

int64_t bucket_elements(const ParallelConfig& config) {
  return std::max<int64_t>(1, std::llround(config.bucket_size_mb * (1 << 20) / 4));
}

bool has_overlapped_actions(const std::vector<Action>& actions) {
  return std::any_of(actions.begin(), actions.end(),
                     [](const Action& action) { return action.kind == ActionKind::ForwardBackward; });
}

}  // namespace

ModelContext ParallelModel::model_context(const ParallelConfig& config, const PipelineSchedule& schedule) {
  Comm *tensor = groups_.tensor.get(), *sequence = groups_.context.get();
  const auto& actions = schedule.ranks[static_cast<size_t>(groups_.coordinate(MeshAxis::Pp))];
  if (has_overlapped_actions(actions) && (tensor != nullptr || sequence != nullptr)) {
    side_by_side_ = std::make_unique<SideBySide>(like_this_thread(device_));
    const auto by_turns = [&](Comm*& comm, std::unique_ptr<Comm>& wrapped) {
      if (comm == nullptr) return;
      wrapped = side_by_side_->waiting_by_turns(*comm);
      comm = wrapped.get();
    };
    by_turns(tensor, tensor_by_turns_);
    by_turns(sequence, context_by_turns_);
  }
  ModelContext context;
  if (tensor != nullptr)
    context.rows =
        RowCollectives(*tensor, config.sequence_parallel ? SequenceParallel::On : SequenceParallel::Off);
  context.sequence = {sequence, config.cp_comm_type == "a2a" ? ContextMethod::AllToAll : ContextMethod::Ring};
  context.events = optimizer_.get();
  return context;
}

RecomputeChoice recompute_choice(const RecomputeConfig& config) {
  const auto rebuilt = [&](const char* module) {
    return config.granularity == "selective" &&
           std::find(config.modules.begin(), config.modules.end(), module) != config.modules.end();
  };
  return {.norm = rebuilt("norm"),
          .swiglu = rebuilt("swiglu"),
          .core_attention = rebuilt("core_attn"),
          .every_layers = config.granularity == "full" ? config.num_layers : 0};
}

StoreOptions store_options(const ExperimentConfig& config, int64_t data_parallel_size, at::Device device) {
  const auto dtype = dtype_from_config(config.precision.dtype);
  HEARTH_REQUIRE(dtype.has_value(), "precision.dtype '{}' is not known", config.precision.dtype);
  return {.dtype = *dtype,
          .device = device,
          .gradients = WithGradients::Yes,
          .data_parallel_size = data_parallel_size,
          .bucket_elements = bucket_elements(config.parallel),
          .weights = DistributedOptimizer::weight_memory(config.parallel.zero_stage),
          .grads = DistributedOptimizer::grad_memory(config.parallel.zero_stage)};
}

ParallelModel::ParallelModel(const ExperimentConfig& config, ParallelGroups& groups, at::Device device)
    : groups_(groups), device_(device), micro_batches_(hearth::micro_batches_per_step(config, groups.mesh)) {
  groups.set_compute_stream(compute_stream(device));
  const PipelineSchedule schedule = pipeline_schedule(config, groups.mesh);
  const ModelPartition partition = model_partition(config, groups.mesh, schedule, groups.rank);
  counts_loss_ = partition.has_head() && groups.coordinate(MeshAxis::Tp) == 0;
  parameters_ = std::make_unique<ParameterStore>(parameter_shards(config.model, partition),
                                                 store_options(config, groups.shards().size(), device));
  optimizer_ =
      std::make_unique<DistributedOptimizer>(config.optimizer, *parameters_,
                                             OptimizerComms{.data_parallel = groups.shards(),
                                                            .replicas = groups.replicas.get(),
                                                            .tensor_parallel = groups.tensor.get(),
                                                            .kv_replicas = groups.kv_replicas.get(),
                                                            .tied_embedding = groups.tied_embedding.get()},
                                             config.parallel.zero_stage);
  const ModelContext context = model_context(config.parallel, schedule);
  gradient_uses_.assign(parameters_->parameters().size(), 0);
  std::vector<Transformer*> chunks;
  for (const ModelChunk& chunk : partition.chunks) {
    chunks_.push_back(std::make_unique<Transformer>(config.model, *parameters_,
                                                    recompute_choice(config.recompute), chunk, context));
    chunks.push_back(chunks_.back().get());
    for (size_t i = 0; i < gradient_uses_.size(); ++i)
      gradient_uses_[i] += chunks_.back()->uses_per_micro(static_cast<int64_t>(i));
  }
  executor_ = std::make_unique<PipelineExecutor>(schedule, groups.coordinate(MeshAxis::Pp), std::move(chunks),
                                                 groups.links, side_by_side_.get());
}

void ParallelModel::initialize(uint64_t seed) {
  optimizer_->load_masters([&](int64_t i, int64_t begin, int64_t end, float* out) {
    parameters_->initial_values(i, seed, begin, end, out);
  });
}

void ParallelModel::load_weights(const TensorSource& source) {
  parameters_->require(source);
  optimizer_->load_masters([&](int64_t i, int64_t begin, int64_t end, float* out) {
    parameters_->read(source, "", i, begin, end, out);
  });
}

ParallelModel::LocalSums ParallelModel::counted(at::Tensor loss_sum, int64_t valid_tokens,
                                                at::Tensor squared_norm) const {
  if (counts_loss_) return {std::move(loss_sum), valid_tokens, std::move(squared_norm)};
  return {at::zeros_like(loss_sum), 0, std::move(squared_norm)};
}

ParallelModel::LocalSums ParallelModel::forward_backward(const PipelineExecutor::NextMicroBatch& next,
                                                         const PipelineExecutor::Observer& observer) {
  optimizer_->begin_step(gradient_uses_, micro_batches_);
  auto [loss_sum, valid_tokens] = executor_->run(next, observer);
  optimizer_->finish_gradients();
  return counted(std::move(loss_sum), valid_tokens, optimizer_->local_sum_of_squares());
}

ParallelModel::LocalSums ParallelModel::evaluate(const MicroBatch& batch) {
  const auto fp64 = at::TensorOptions(device_).dtype(at::kDouble);
  const at::Tensor hidden = executor_->infer(batch.input, nullptr);
  at::Tensor loss_sum = at::zeros({}, fp64);
  if (hidden.defined())
    loss_sum = executor_->head_chunk().logprobs(hidden, batch.targets_N).to(at::kDouble).sum().neg();
  return counted(std::move(loss_sum), batch.valid_targets, at::zeros({1}, fp64));
}

InferenceModel ParallelModel::inference() {
  std::vector<Transformer*> chunks;
  for (const auto& chunk : chunks_) chunks.push_back(chunk.get());
  return {*executor_, std::move(chunks), groups_.pipeline.get()};
}

StepTotals ParallelModel::sum_over_ranks(const LocalSums& mine, bool stop_requested) {
  const at::Tensor host =
      at::tensor({static_cast<double>(mine.valid_tokens), stop_requested ? 1.0 : 0.0}, at::kDouble);
  at::Tensor totals =
      at::cat({mine.loss_sum.to(at::kDouble).view({1}), mine.squared_norm.view({1}), host.to(device_)});
  groups_.everyone()
      .all_reduce(totals.data_ptr(), totals.numel(), DType::F64, ReduceOp::Sum, "step.totals")
      ->wait();
  totals = totals.to(at::kCPU);
  const double* value = totals.data_ptr<double>();
  return {.loss_sum = value[0], .valid_tokens = value[2], .squared_norm = value[1], .stop = value[3] > 0};
}

}  // namespace hearth
