#include "trainer/parallel_model.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/error.h"
#include "trainer/device.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

int64_t bucket_elements(const ParallelConfig& config) {
  return std::max<int64_t>(1, std::llround(config.bucket_size_mb * (1 << 20) / 4));
}

OptimizerDtypes optimizer_dtypes(const PrecisionConfig& precision) {
  const auto type = [](const std::string& word) { return word == "bf16" ? at::kBFloat16 : at::kFloat; };
  return {.masters = precision.has_masters(),
          .exp_avg = type(precision.exp_avg_dtype),
          .exp_avg_sq = type(precision.exp_avg_sq_dtype)};
}

bool has_overlapped_actions(const std::vector<Action>& actions) {
  return std::any_of(actions.begin(), actions.end(),
                     [](const Action& action) { return action.kind == ActionKind::ForwardBackward; });
}

}  // namespace

ModelContext ParallelModel::training_context(const ParallelConfig& config, const PipelineSchedule& schedule) {
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
  ModelContext context = model_context(config, tensor, sequence);
  context.events = events_ ? static_cast<ParameterEvents*>(events_.get()) : optimizer_.get();
  context.gradients_travel = groups_.shards().size() > 1;
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

std::vector<ParameterSpec> trained_parameter_specs(const ExperimentConfig& config) {
  if (config.objective.lora_rank == 0) return parameter_specs(config.model);
  std::vector<ParameterSpec> specs;
  for (ParameterShard& shard :
       lora_shards(config.model, ModelPartition::whole(config.model), config.objective.lora()))
    specs.push_back(std::move(shard.spec));
  return specs;
}

bool continues_adapters(const ObjectiveConfig& objective, const ModelBundle* init_from) {
  if (objective.lora_rank == 0 || init_from == nullptr || init_from->adapters == nullptr) return false;
  const LoraShape own = objective.lora();
  const auto same_modules = [&] {
    return std::all_of(lora_modules().begin(), lora_modules().end(), [&](const std::string& module) {
      return own.targets(module) == init_from->lora.targets(module);
    });
  };
  return own.rank == init_from->lora.rank && own.scale() == init_from->lora.scale() && same_modules();
}

StoreOptions store_options(const ExperimentConfig& config, int64_t data_parallel_size, at::Device device) {
  const auto dtype = dtype_from_config(config.precision.dtype);
  HEARTH_REQUIRE(dtype.has_value(), "precision.dtype '{}' is not known", config.precision.dtype);
  return {.dtype = *dtype,
          .grads_dtype = config.precision.grads_dtype(),
          .device = device,
          .gradients = WithGradients::Yes,
          .data_parallel_size = data_parallel_size,
          .bucket_elements = bucket_elements(config.parallel),
          // Adapters are small, so gathering them would cost more than it saves; and weight gradients that
          // are deferred read them when their unit's weights are gone.
          .weights = config.objective.lora_rank > 0
                         ? BucketMemory::Resident
                         : DistributedOptimizer::weight_memory(config.parallel.zero_stage),
          .grads = DistributedOptimizer::grad_memory(config.parallel.zero_stage)};
}

FrozenForm base_form(const ExperimentConfig& config, int64_t data_parallel_size) {
  return config.objective.quantize_base == "nf4"
             ? FrozenForm::Nf4
             : frozen_form(config.parallel.zero_stage, data_parallel_size);
}

ParallelModel::ParallelModel(const ExperimentConfig& config, ParallelGroups& groups, at::Device device,
                             const OtherModels& others)
    : groups_(groups),
      objective_config_(config.objective),
      device_(device),
      micro_batches_(hearth::micro_batches_per_step(config, groups.mesh)) {
  groups.set_compute_stream(compute_stream(device));
  const PipelineSchedule schedule = pipeline_schedule(config, groups.mesh);
  const ModelPartition partition = model_partition(config, groups.mesh, schedule, groups.rank);
  counts_loss_ = partition.has_head() && groups.coordinate(MeshAxis::Tp) == 0;
  StoreOptions trained = store_options(config, groups.shards().size(), device);
  if (config.parallel.zero_stage > 0) trained.gathered_by = &groups.shards();
  const LoraShape lora = config.objective.lora();
  if (lora.rank > 0) {
    parameters_ = std::make_unique<ParameterStore>(lora_shards(config.model, partition, lora), trained);
    frozen_ = std::make_unique<FrozenWeights>(parameter_shards(config.model, partition),
                                              FrozenOptions{.form = base_form(config, groups.shards().size()),
                                                            .dtype = trained.dtype,
                                                            .device = device,
                                                            .memory = &parameters_->memory()},
                                              groups.shards());
    adapters_.emplace(Adapters{*parameters_, lora, config.objective.lora_dropout,
                               static_cast<uint64_t>(config.training.seed)});
  } else {
    parameters_ = std::make_unique<ParameterStore>(parameter_shards(config.model, partition), trained);
  }
  optimizer_ =
      std::make_unique<DistributedOptimizer>(config.optimizer, *parameters_,
                                             OptimizerComms{.data_parallel = groups.shards(),
                                                            .replicas = groups.replicas.get(),
                                                            .tensor_parallel = groups.tensor.get(),
                                                            .kv_replicas = groups.kv_replicas.get(),
                                                            .tied_embedding = groups.tied_embedding.get()},
                                             config.parallel.zero_stage, optimizer_dtypes(config.precision));
  if (frozen_) events_ = std::make_unique<BothEvents>(frozen_->events(), *optimizer_);
  ModelContext context = training_context(config.parallel, schedule);
  context.attention = attention_backend_from_config(config.training.attention_backend);
  gradient_uses_.assign(parameters_->parameters().size(), 0);
  std::vector<Transformer*> chunks;
  for (const ModelChunk& chunk : partition.chunks) {
    chunks_.push_back(std::make_unique<Transformer>(
        config.model, frozen_ ? frozen_->parameters() : *parameters_, recompute_choice(config.recompute),
        chunk, context, adapters_ ? &*adapters_ : nullptr));
    chunks.push_back(chunks_.back().get());
    for (size_t i = 0; i < gradient_uses_.size(); ++i)
      gradient_uses_[i] += chunks_.back()->uses_per_micro(static_cast<int64_t>(i));
  }
  executor_ = std::make_unique<PipelineExecutor>(schedule, groups.coordinate(MeshAxis::Pp), std::move(chunks),
                                                 groups.links, side_by_side_.get());
  if (frozen_) base_ = std::make_unique<FrozenModel>(*frozen_, config, groups);
  objective_ = make_objective({.config = config,
                               .groups = groups,
                               .device = device,
                               .memory = parameters_->memory(),
                               .base = base_.get(),
                               .init_from = others.init_from,
                               .teacher = others.teacher,
                               .teacher_cache = others.teacher_cache,
                               .teacher_client = others.teacher_client});
  head_loss_ = [this](Transformer& head, const at::Tensor& hidden, const MicroBatch& batch) {
    return objective_->loss(head, hidden, batch);
  };
  // Questions to another model travel over the same links and groups as the step itself: where that
  // communicates within the step's own order, all are asked before it begins.
  const bool consults_ahead =
      objective_->consults() && (schedule.virtual_stages() > 1 || side_by_side_ != nullptr);
  reads_ahead_ = std::min(micro_batches_, consults_ahead ? micro_batches_ : objective_->reads_ahead());
}

const TensorSource& ParallelModel::base_weights(const ModelBundle& init_from) const {
  return continues_adapters(objective_config_, &init_from) ? *init_from.base : *init_from.tensors;
}

void ParallelModel::start(uint64_t seed, const ModelBundle* init_from) {
  const TensorSource* source = nullptr;  // of what is trained
  if (frozen_) {
    init_from != nullptr ? frozen_->load(base_weights(*init_from)) : frozen_->initialize(seed);
    if (continues_adapters(objective_config_, init_from)) source = init_from->adapters.get();
  } else if (init_from != nullptr) {
    source = init_from->tensors.get();
  }
  if (source != nullptr) parameters_->require(*source);
  optimizer_->load_masters([&](int64_t i, int64_t begin, int64_t end, float* out) {
    if (source != nullptr) {
      parameters_->read(*source, "", i, begin, end, out);
    } else {
      parameters_->initial_values(i, seed, begin, end, out);
    }
  });
}

void ParallelModel::resume(const TensorSource& checkpoint, const ModelBundle* init_from) {
  if (frozen_) {
    HEARTH_REQUIRE(init_from != nullptr, "adapters are resumed without the weights below them");
    frozen_->load(base_weights(*init_from));
  }
  optimizer_->load(checkpoint);
}

MicroBatch ParallelModel::micro_batch(const std::vector<Sample>& samples, DocumentMask mask) {
  MicroBatch batch = make_micro_batch(samples, mask, *chunks_[0]);
  objective_->describe(samples, batch);
  return batch;
}

MicroBatch ParallelModel::training_micro_batch(std::vector<Sample> samples, DocumentMask mask) {
  if (objective_->rewrites()) {
    InferenceModel model = inference();
    objective_->rewrite(samples, model);
  }
  return micro_batch(samples, mask);
}

NamedValues ParallelModel::objective_metrics(const StepTotals& totals) const {
  NamedValues values;
  const auto names = objective_->metrics();
  const auto reported = objective_->reported(totals.metrics, totals.valid_tokens);
  for (size_t i = 0; i < names.size(); ++i) values.emplace_back(names[i], reported[i]);
  return values;
}

ParallelModel::LocalSums ParallelModel::no_sums() const {
  const auto fp64 = at::TensorOptions(device_).dtype(at::kDouble);
  return {at::zeros({objective_->num_sums()}, fp64), 0, at::zeros({1}, fp64)};
}

ParallelModel::LocalSums ParallelModel::counted(at::Tensor sums, int64_t valid_tokens,
                                                at::Tensor squared_norm) {
  LocalSums mine{std::move(sums), valid_tokens, std::move(squared_norm)};
  if (!counts_loss_) mine.sums = at::zeros_like(mine.sums), mine.valid_tokens = 0;
  if (const at::Tensor own = objective_->take_own_sums(); own.defined()) mine.sums = mine.sums.add(own);
  return mine;
}

void ParallelModel::allow_graphs(const ExperimentConfig& config, Log& log) {
  if (device_.is_cpu() || config.training.cuda_graph == "off") return;
  std::string reason;
  if (groups_.everyone().size() > 1) {
    reason = "ranks talk to each other within a step, under deadlines that a graph has no place for";
  } else if (chunks_.size() > 1) {
    reason = "the model is cut into pipeline chunks";
  } else if (objective_->consults() || objective_->rewrites() || objective_->reads_ahead() > 0) {
    reason = "the objective asks another model, or the model itself, within a step";
  } else if (config.profile.enabled) {
    reason = "a trace names every operator";
  }
  if (!reason.empty()) return log.info("event=cuda_graph state=off reason=\"{}\"", reason);
  graph_ = std::make_unique<StepGraph>(
      config.training.cuda_graph == "auto", [this] { return parameters_->memory().peak().activations; }, log);
}

ParallelModel::LocalSums ParallelModel::forward_backward(const PipelineExecutor::NextMicroBatch& next,
                                                         const PipelineExecutor::Observer& observer) {
  if (graph_ == nullptr || observer) return eager_step(next, observer);
  std::vector<MicroBatch> batches;
  int64_t valid_tokens = 0;
  for (int64_t micro = 0; micro < micro_batches_; ++micro) {
    batches.push_back(next());
    valid_tokens += batches.back().valid_targets;
  }
  const auto step = [this](std::vector<MicroBatch> given) {
    size_t taken = 0;
    auto mine = eager_step([&] { return std::move(given[taken++]); }, {});
    return StepGraph::Sums{std::move(mine.sums), std::move(mine.squared_norm)};
  };
  auto sums = graph_->run(std::move(batches), step);
  return {std::move(sums.sums), valid_tokens, std::move(sums.squared_norm)};
}

ParallelModel::LocalSums ParallelModel::eager_step(const PipelineExecutor::NextMicroBatch& next,
                                                   const PipelineExecutor::Observer& observer) {
  // Samples that the model itself writes: while the step runs, its chunks are at work.
  std::deque<MicroBatch> written;
  for (int64_t micro = 0; objective_->rewrites() && micro < micro_batches_; ++micro)
    written.push_back(next());
  const auto next_batch = [&] {
    if (written.empty()) return next();
    MicroBatch batch = std::move(written.front());
    written.pop_front();
    return batch;
  };
  optimizer_->begin_step(gradient_uses_, micro_batches_);
  std::deque<MicroBatch> ready;
  int64_t unread = micro_batches_;
  const auto read_up_to = [&](int64_t count) {
    for (; unread > 0 && static_cast<int64_t>(ready.size()) < count; --unread) {
      ready.push_back(next_batch());
      if (objective_->consults()) objective_->consult(ready.back());
    }
  };
  read_up_to(reads_ahead_);
  const PipelineExecutor::NextMicroBatch give = [&] {
    read_up_to(reads_ahead_ + 1);
    MicroBatch batch = std::move(ready.front());
    ready.pop_front();
    return batch;
  };
  auto [sums, valid_tokens] = executor_->run(give, head_loss_, objective_->num_sums(), observer);
  optimizer_->finish_gradients();
  return counted(std::move(sums), valid_tokens, optimizer_->local_sum_of_squares());
}

ParallelModel::LocalSums ParallelModel::evaluate(MicroBatch batch) {
  LocalSums none = no_sums();
  batch.input.dropout_keys = {};
  if (objective_->consults()) objective_->consult(batch);
  const at::Tensor hidden = executor_->infer(batch.input, nullptr);
  if (!hidden.defined()) return counted(none.sums, batch.valid_targets, none.squared_norm);
  return counted(objective_->evaluate(executor_->head_chunk(), hidden, batch), batch.valid_targets,
                 none.squared_norm);
}

InferenceModel ParallelModel::inference() {
  std::vector<Transformer*> chunks;
  for (const auto& chunk : chunks_) chunks.push_back(chunk.get());
  return {*executor_, std::move(chunks), groups_.pipeline.get()};
}

bool ParallelModel::update(const StepTotals& totals, double learning_rate, double clip_grad) {
  if (!std::isfinite(totals.lm_loss()) || !std::isfinite(totals.grad_norm())) return false;
  // As torch.nn.utils.clip_grad_norm_: never scales up, 1e-6 guards the division.
  const double clip = clip_grad > 0 ? std::min(1.0, clip_grad / (totals.grad_norm() + 1e-6)) : 1.0;
  optimizer_->step(learning_rate, clip / totals.valid_tokens);
  return true;
}

StepTotals ParallelModel::sum_over_ranks(const LocalSums& mine, bool stop_requested) {
  const at::Tensor host =
      at::tensor({static_cast<double>(mine.valid_tokens), stop_requested ? 1.0 : 0.0}, at::kDouble);
  at::Tensor totals = at::cat({host.to(device_), mine.squared_norm.view({1}), mine.sums.to(at::kDouble)});
  groups_.everyone()
      .all_reduce(totals.data_ptr(), totals.numel(), DType::F64, ReduceOp::Sum, "step.totals")
      ->wait();
  totals = totals.to(at::kCPU);
  const double* value = totals.data_ptr<double>();
  return {.loss_sum = value[3],
          .valid_tokens = value[0],
          .squared_norm = value[2],
          .metrics = {value + 4, value + totals.numel()},
          .stop = value[1] > 0};
}

}  // namespace hearth
