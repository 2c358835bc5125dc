// A model that is asked and never trained: the teacher of a distillation, the reference of preference
// optimisation. It lies on the same ranks and under the same layout as the model in training, with its own
// split of layers over the stages, so its head is where theirs is. Weights are resident. Collective over the
// ranks of a replica. Borrows the groups. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/experiment_config.h"
#include "trainer/parallel_groups.h"
#include "trainer/pipeline/pipeline_executor.h"

namespace hearth {

class FrozenModel {
 public:
  // Reads this rank's slices of `tensors`, in precision.dtype of `training`, whose layout counts. Throws
  // Error{Config} where the shape does not fit the layout.
  FrozenModel(const ModelConfig& shape, const TensorSource& tensors, const ExperimentConfig& training,
              ParallelGroups& groups, at::Device device);
  // Over weights that are here: `parameters` was made for `training`'s own model and layout, and outlives
  // this.
  FrozenModel(ParameterStore& parameters, const ExperimentConfig& training, ParallelGroups& groups);

  // [n, D] after the final norm where this rank has the head, else undefined.
  at::Tensor hidden(const ModelInput& input);
  // fp32 [N]: log p(target) per row, 0 where the target is -100; undefined where this rank has no head.
  at::Tensor logprobs(const ModelInput& input, const at::Tensor& targets_N);
  Transformer& head_chunk() const { return executor_->head_chunk(); }

 private:
  void make_chunks(const ExperimentConfig& config, ParallelGroups& groups);

  std::unique_ptr<ParameterStore> own_;
  ParameterStore* parameters_;
  std::vector<std::unique_ptr<Transformer>> chunks_;
  std::unique_ptr<PipelineExecutor> executor_;
};

// `tensors` of a model as if it had another number of vocabulary rows: rows beyond its own are zero, rows
// beyond the new number are left out. Borrows `tensors`.
class ResizedVocabulary : public TensorSource {
 public:
  ResizedVocabulary(const TensorSource& tensors, const ModelConfig& config, int64_t vocab_size);
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return tensors_.contains(name); }
  const TensorInfo& info(const std::string& name) const override;
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override;
  std::string describe() const override { return tensors_.describe(); }

 private:
  const TensorSource& tensors_;
  std::vector<TensorInfo> infos_;
};

}  // namespace hearth
