#include "trainer/objective/intermediate_states.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "parallel/tensor/tensor_dtype.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

// The pipeline coordinate of the rank that computes a layer (number of layers, from 1).
int stage_of(int64_t layer, const ExperimentConfig& config, const ParallelGroups& groups) {
  const PipelineSchedule schedule = pipeline_schedule(config, groups.mesh);
  const std::vector<int> column = groups.mesh.group(groups.rank, MeshAxis::Pp);
  for (size_t stage = 0; stage < column.size(); ++stage)
    for (const ModelChunk& chunk : model_partition(config, groups.mesh, schedule, column[stage]).chunks)
      if (layer > chunk.first_layer && layer <= chunk.first_layer + chunk.num_layers)
        return static_cast<int>(stage);
  fail(ErrorKind::Internal, "layer {} lies on no pipeline stage", layer);
}

}  // namespace

IntermediateStates::IntermediateStates(const ExperimentConfig& config, const ModelConfig& shape,
                                       ParallelGroups& groups, FrozenModel& teacher, at::Device device)
    : groups_(groups),
      teacher_(teacher),
      rows_(model_context(config.parallel, groups.tensor.get(), groups.context.get()).rows),
      stage_(groups.coordinate(MeshAxis::Pp)),
      state_options_(
          at::TensorOptions(device).dtype(torch_dtype(dtype_from_config(config.precision.dtype).value()))),
      width_(shape.hidden_size),
      sum_(at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat))) {
  HEARTH_CHECK(
      shape.hidden_size == config.model.hidden_size, Config,
      "objective.intermediate compares states of one width, but hidden_size is {} of the student and {} "
      "of the teacher: leave it out, or choose a student as wide as the teacher",
      config.model.hidden_size, shape.hidden_size);
  const ExperimentConfig around_teacher = frozen_model_config(config, shape);
  std::vector<int64_t> layers;
  for (const IntermediatePair& pair : config.objective.intermediate) {
    HEARTH_CHECK(pair.student_layer <= config.model.num_hidden_layers, Config,
                 "objective.intermediate: student_layer is {}, the student has {} layers", pair.student_layer,
                 config.model.num_hidden_layers);
    HEARTH_CHECK(pair.teacher_layer <= shape.num_hidden_layers, Config,
                 "objective.intermediate: teacher_layer is {}, the teacher has {} layers", pair.teacher_layer,
                 shape.num_hidden_layers);
    pairs_.push_back({pair, stage_of(pair.teacher_layer, around_teacher, groups),
                      stage_of(pair.student_layer, config, groups)});
    layers.push_back(pair.teacher_layer);
  }
  teacher_.keep_states(layers);
}

// Every rank of the pipeline makes the same pairs in the same order, so a receiver's sender is on its way.
at::Tensor IntermediateStates::moved(const Pair& pair, const at::Tensor& state, int64_t rows) const {
  if (pair.from == pair.to) return state;
  const std::string site =
      fmt::format("kd.state.{}to{}", pair.config.teacher_layer, pair.config.student_layer);
  if (stage_ == pair.from) {
    groups_.pipeline->send(state.data_ptr(), state.numel(), dtype_of(state), pair.to, site)->wait();
    return {};
  }
  at::Tensor arrived = at::empty({rows, width_}, state_options_);
  groups_.pipeline->recv(arrived.data_ptr(), arrived.numel(), dtype_of(arrived), pair.from, site)->wait();
  return arrived;
}

// 1 for the rows of this rank whose target counts.
at::Tensor IntermediateStates::counts(const MicroBatch& batch) const {
  const at::Tensor all_N = batch.targets_N.ne(kernels::kIgnoreIndex).to(at::kFloat);
  if (!rows_.splits_rows()) return all_N;
  const int64_t rows = rows_.local_rows(all_N.size(0));
  return all_N.narrow(0, rows_.rank() * rows, rows);
}

void IntermediateStates::complete(MicroBatch& batch) {
  const auto states = teacher_.take_states();
  const at::Tensor counts_n = counts(batch);
  // Of the ranks that hold the same rows, one counts them.
  const at::Tensor sum = rows_.splits_rows() || rows_.rank() == 0 ? sum_ : at::Tensor();
  for (const Pair& pair : pairs_) {
    if (stage_ != pair.from && stage_ != pair.to) continue;
    const auto own = states.find(pair.config.teacher_layer);
    const at::Tensor target_nD =
        moved(pair, own == states.end() ? at::Tensor() : own->second.contiguous(), counts_n.size(0));
    if (stage_ != pair.to) continue;
    batch.input.states.push_back(
        {.layer = pair.config.student_layer,
         .kind = pair.config.loss == "mse" ? StateLossKind::Mse : StateLossKind::Cosine,
         .weight = pair.config.weight,
         .target_nD = target_nD,
         .counts_n = counts_n,
         .sum = sum});
  }
}

at::Tensor IntermediateStates::take_sum() {
  at::Tensor taken = sum_.clone();
  sum_.zero_();
  return taken;
}

}  // namespace hearth
