#include "trainer/objective/frozen_model.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

bool is_vocabulary_table(const std::string& name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

}  // namespace

ExperimentConfig frozen_model_config(const ExperimentConfig& training, const ModelConfig& shape) {
  ExperimentConfig config = training;
  static_cast<ModelConfig&>(config.model) = shape;
  config.parallel.pipeline_model_parallel_layout.clear();  // of the model in training
  return config;
}

FrozenModel::FrozenModel(const ModelConfig& shape, const TensorSource& tensors,
                         const ExperimentConfig& training, ParallelGroups& groups, at::Device device,
                         MemoryLedger& memory) {
  const ExperimentConfig config = frozen_model_config(training, shape);
  require_tensor_parallel(shape, groups.mesh.size(MeshAxis::Tp));
  const PipelineSchedule schedule = pipeline_schedule(config, groups.mesh);
  HEARTH_CHECK(shape.num_hidden_layers >= schedule.virtual_stages(), Config,
               "{} has {} layers, too few for {} pipeline stages", tensors.describe(),
               shape.num_hidden_layers, schedule.virtual_stages());
  const auto dtype = dtype_from_config(config.precision.dtype);
  own_ = std::make_unique<FrozenWeights>(
      parameter_shards(shape, model_partition(config, groups.mesh, schedule, groups.rank)),
      FrozenOptions{.form = frozen_form(config.parallel.zero_stage, groups.shards().size()),
                    .dtype = dtype.value(),
                    .device = device,
                    .memory = &memory},
      groups.shards());
  weights_ = own_.get();
  weights_->load(tensors);
  make_chunks(config, groups);
}

FrozenModel::FrozenModel(FrozenWeights& weights, const ExperimentConfig& training, ParallelGroups& groups)
    : weights_(&weights) {
  make_chunks(training, groups);
}

void FrozenModel::make_chunks(const ExperimentConfig& config, ParallelGroups& groups) {
  const PipelineSchedule schedule = pipeline_schedule(config, groups.mesh);
  ModelContext context = model_context(config.parallel, groups.tensor.get(), groups.context.get());
  context.events = &weights_->events();
  std::vector<Transformer*> chunks;
  for (const ModelChunk& chunk : model_partition(config, groups.mesh, schedule, groups.rank).chunks) {
    chunks_.push_back(std::make_unique<Transformer>(config.model, weights_->parameters(), RecomputeChoice{},
                                                    chunk, context));
    chunks.push_back(chunks_.back().get());
  }
  executor_ = std::make_unique<PipelineExecutor>(schedule, groups.coordinate(MeshAxis::Pp), std::move(chunks),
                                                 groups.links);
}

at::Tensor FrozenModel::hidden(const ModelInput& input) {
  const at::NoGradGuard no_grad;
  at::Tensor rows = executor_->infer(input, nullptr);
  // Fetched with the last layer and the norm: the rows may wait long for the head.
  if (rows.defined()) head_chunk().context().after_forward(head_chunk().head().unit);
  return rows;
}

std::shared_ptr<const void> FrozenModel::hold_head() const {
  const Transformer& head = head_chunk();
  head.context().before_forward(head.head().unit);
  return {&head, [](const Transformer* held) { held->context().after_forward(held->head().unit); }};
}

at::Tensor FrozenModel::logprobs(const ModelInput& input, const at::Tensor& targets_N) {
  const at::NoGradGuard no_grad;
  const at::Tensor rows = executor_->infer(input, nullptr);
  return rows.defined() ? head_chunk().logprobs(rows, targets_N) : at::Tensor();
}

ResizedVocabulary::ResizedVocabulary(const TensorSource& tensors, const ModelConfig& config,
                                     int64_t vocab_size)
    : tensors_(tensors), infos_(tensors.tensors()) {
  for (TensorInfo& info : infos_) {
    if (!is_vocabulary_table(info.name)) continue;
    HEARTH_ASSERT(info.shape.at(0) == config.vocab_size);
    info.shape[0] = vocab_size;
  }
}

const TensorInfo& ResizedVocabulary::info(const std::string& name) const {
  const auto found =
      std::find_if(infos_.begin(), infos_.end(), [&](const TensorInfo& info) { return info.name == name; });
  HEARTH_REQUIRE(found != infos_.end(), "{} has no tensor '{}'", describe(), name);
  return *found;
}

void ResizedVocabulary::read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                                      void* out) const {
  const int64_t stored = tensors_.info(name).numel(), there = std::clamp(stored, begin, end);
  if (begin < there) tensors_.read_elements(name, begin, there, dtype, out);
  const int64_t width = size_bytes(dtype);
  std::memset(static_cast<std::byte*>(out) + (there - begin) * width, 0,
              static_cast<size_t>((end - there) * width));
}

}  // namespace hearth
