#include "trainer/loaded_model.h"

#include <algorithm>

#include "base/config_visit.h"
#include "base/error.h"
#include "trainer/device.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

// What the layout functions of a training ask for, where there is no experiment file.
ExperimentConfig experiment_of(const ModelConfig& model, const ParallelConfig& layout, const Mesh& mesh) {
  ExperimentConfig config;
  static_cast<ModelConfig&>(config.model) = model;
  config.parallel = layout;
  config.training.micro_batch_size = 1;
  config.training.global_batch_size = mesh.size(MeshAxis::Dp);
  // Attention counts in the split of layers over stages; a typical length does for that.
  config.data.seq_length = std::min<int64_t>(model.max_position_embeddings, 2048);
  return config;
}

}  // namespace

ParallelConfig answering_layout(ParallelConfig layout) {
  // Else the written split is of several chunks a rank.
  if (implied_chunks(schedule_kind_from_config(layout.pipeline_schedule)) != 1)
    layout.pipeline_model_parallel_layout.clear();
  layout.pipeline_schedule = "1f1b";
  layout.virtual_pipeline_model_parallel_size = 1;
  layout.context_parallel_size = 1;
  layout.zero_stage = 0;
  layout.num_distributed_optimizer_instances = 1;
  layout.sequence_parallel = false;  // a single row does not split
  return layout;
}

ParallelConfig layout_of_all(const ModelConfig& model, int ranks) {
  ParallelConfig layout = answering_layout({});
  for (int copies = 1; copies <= ranks; ++copies)
    for (int tensor = ranks / copies; tensor >= 1; --tensor) {
      if (ranks % (copies * tensor) != 0) continue;
      const int64_t stages = ranks / (copies * tensor);
      ConfigErrors errors;
      check_tensor_parallel(model, tensor, errors);
      if (!errors.empty() || stages > model.num_hidden_layers) continue;
      layout.tensor_model_parallel_size = tensor;
      layout.pipeline_model_parallel_size = stages;
      return layout;
    }
  return layout;
}

ModelShare load_share(const ModelConfig& model, const TensorSource& tensors, DType dtype, at::Device device,
                      Job& job, const ParallelConfig& layout) {
  const Mesh mesh = Mesh::from_config(layout, job.control->world_size());
  require_tensor_parallel(model, mesh.size(MeshAxis::Tp));
  const ExperimentConfig config = experiment_of(model, layout, mesh);
  ModelShare share;
  share.groups = std::make_unique<ParallelGroups>(make_parallel_groups(job, config, mesh, device));
  share.groups->set_compute_stream(compute_stream(device));
  const PipelineSchedule schedule = pipeline_schedule(config, mesh);
  const ModelPartition partition = model_partition(config, mesh, schedule, share.groups->rank);
  share.parameters = std::make_unique<ParameterStore>(parameter_shards(config.model, partition),
                                                      StoreOptions{.dtype = dtype, .device = device});
  share.parameters->load(tensors);
  const ModelContext context = model_context(layout, share.groups->tensor.get(), share.groups->context.get());
  share.transformer = std::make_unique<Transformer>(config.model, *share.parameters, RecomputeChoice{},
                                                    partition.chunks[0], context);
  const std::vector<Transformer*> chunks{share.transformer.get()};
  share.executor = std::make_unique<PipelineExecutor>(schedule, share.groups->coordinate(MeshAxis::Pp),
                                                      chunks, share.groups->links);
  share.inference = std::make_unique<InferenceModel>(*share.executor, chunks, share.groups->pipeline.get());
  return share;
}

const Tokenizer& LoadedModel::require_tokenizer() const {
  HEARTH_CHECK(bundle.tokenizer != nullptr, BadInput,
               "{} carries no tokenizer; put tokenizer.json (or tokenizer.model) into that folder",
               bundle.origin);
  return *bundle.tokenizer;
}

std::vector<int32_t> LoadedModel::eos_ids() const {
  std::vector<int32_t> ids;
  for (const int64_t id : bundle.ids.eos) ids.push_back(checked_cast<int32_t>(id));
  return ids;
}

LoadedModel load_model(ModelBundle bundle, std::optional<DType> dtype, at::Device device, Job& job,
                       const ParallelConfig& layout) {
  ModelShare share =
      load_share(bundle.config, *bundle.tensors, dtype.value_or(bundle.stored_dtype), device, job, layout);
  return {std::move(share), std::move(bundle)};
}

}  // namespace hearth
