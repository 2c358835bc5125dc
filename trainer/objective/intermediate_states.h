// The terms of a distillation on intermediate states: objective.intermediate. A teacher's states go from the
// pipeline rank that has its layer to the one that has the student's; there the rows' loss is added where
// they pass (model/state_loss.h). Used by every rank of a replica alike. Borrows the groups and the teacher.
// Not thread-safe.
#pragma once

#include <vector>

#include "trainer/experiment_config.h"
#include "trainer/micro_batch.h"
#include "trainer/objective/frozen_model.h"

namespace hearth {

class IntermediateStates {
 public:
  // `teacher` lies as `shape` says under the training's layout. Throws Error{Config} for layers that a model
  // does not have, and for states of different width.
  IntermediateStates(const ExperimentConfig& config, const ModelConfig& shape, ParallelGroups& groups,
                     FrozenModel& teacher, at::Device device);

  // After teacher.hidden(batch.input): gives the batch its terms on the layers of this rank. Sends and
  // receives over the pipeline.
  void complete(MicroBatch& batch);
  // fp32 [1]: weight x sum over rows that this rank counted since the last call.
  at::Tensor take_sum();

 private:
  struct Pair {
    IntermediatePair config;
    int from = 0, to = 0;  // pipeline coordinates of the teacher's layer and of the student's
  };
  at::Tensor moved(const Pair& pair, const at::Tensor& state, int64_t rows) const;
  at::Tensor counts(const MicroBatch& batch) const;

  ParallelGroups& groups_;
  FrozenModel& teacher_;
  RowCollectives rows_;
  int stage_;
  std::vector<Pair> pairs_;
  at::TensorOptions state_options_;
  int64_t width_;
  at::Tensor sum_;
};

}  // namespace hearth
