#include "trainer/parallel_layout.h"

#include "base/error.h"
#include "data/sampler.h"
#include "parallel/pipeline/stage_split.h"

namespace hearth {

int64_t micro_batches_per_step(const ExperimentConfig& config, const Mesh& mesh) {
  return BatchShape{.global_batch_size = config.training.global_batch_size,
                    .micro_batch_size = config.training.micro_batch_size,
                    .data_parallel_size = mesh.size(MeshAxis::Dp)}
      .micro_batches_per_step();
}

PipelineSchedule pipeline_schedule(const ExperimentConfig& config, const Mesh& mesh) {
  const ParallelConfig& p = config.parallel;
  const ScheduleKind kind = schedule_kind_from_config(p.pipeline_schedule);
  const int implied = implied_chunks(kind);
  const auto chunks = implied > 0 ? implied : checked_cast<int>(p.virtual_pipeline_model_parallel_size);
  return with_transfers(make_schedule(kind, mesh.size(MeshAxis::Pp), chunks,
                                      checked_cast<int>(micro_batches_per_step(config, mesh))));
}

std::vector<int> layers_per_stage(const ExperimentConfig& config, const PipelineSchedule& schedule) {
  const ModelConfig& m = config.model;
  const int stages = schedule.virtual_stages();
  const auto& written = config.parallel.pipeline_model_parallel_layout;
  if (!written.empty()) {
    std::vector<int> split;
    for (const int64_t layers : written) split.push_back(checked_cast<int>(layers));
    check_split(split, checked_cast<int>(m.num_hidden_layers), stages);
    return split;
  }
  // Flops of a token forward: the head is a matrix of vocab_size x hidden_size, the lookup is next to
  // nothing.
  ModelConfig layers_only = m;
  layers_only.vocab_size = 1;
  const double layers = model_flops(layers_only, config.data.seq_length).per_token_causal / 3.0;
  const double head = 2.0 * static_cast<double>(m.vocab_size) * static_cast<double>(m.hidden_size);
  return split_layers(
      checked_cast<int>(m.num_hidden_layers), schedule,
      {.layer = layers / static_cast<double>(m.num_hidden_layers), .embedding = 0, .head = head});
}

ModelPartition model_partition(const ExperimentConfig& config, const Mesh& mesh,
                               const PipelineSchedule& schedule, int rank) {
  const auto chunks = model_chunks(layers_per_stage(config, schedule));
  const int stage = mesh.coordinate(rank, MeshAxis::Pp);
  ModelPartition partition;
  partition.tensor_size = mesh.size(MeshAxis::Tp);
  partition.tensor_rank = mesh.coordinate(rank, MeshAxis::Tp);
  partition.sequence_parallel = config.parallel.sequence_parallel;
  for (int chunk = 0; chunk < schedule.chunks; ++chunk)
    partition.chunks.push_back(chunks[static_cast<size_t>(schedule.virtual_stage(stage, chunk))]);
  partition.tied_ends_apart = config.model.tie_word_embeddings &&
                              schedule.place(0).rank != schedule.place(schedule.virtual_stages() - 1).rank;
  return partition;
}

}  // namespace hearth
