// A model that is asked and never trained: the teacher of a distillation, the reference of preference
// optimisation. It lies on the same ranks and under the same layout as the model in training, with its own
// split of layers over the stages, so its head is where theirs is. Collective over the ranks of a replica,
// and where its weights are split (frozen_weights.h) over those of data parallelism. Borrows the groups. Not
// thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/experiment_config.h"
#include "trainer/model/frozen_weights.h"
#include "trainer/parallel_groups.h"
#include "trainer/pipeline/pipeline_executor.h"

namespace hearth {

// The training's layout around another model, whose layers are split over the stages anew. Pure.
ExperimentConfig frozen_model_config(const ExperimentConfig& training, const ModelConfig& shape);

class FrozenModel {
 public:
  // Reads this rank's slices of `tensors`, in precision.dtype of `training`, whose layout counts. Throws
  // Error{Config} where the shape does not fit the layout. `memory` counts the weights.
  FrozenModel(const ModelConfig& shape, const TensorSource& tensors, const ExperimentConfig& training,
              ParallelGroups& groups, at::Device device, MemoryLedger& memory);
  // Over weights that are here: `weights` were made for `training`'s own model and layout, and outlive this.
  FrozenModel(FrozenWeights& weights, const ExperimentConfig& training, ParallelGroups& groups);

  // [n, D] after the final norm where this rank has the head, else undefined.
  at::Tensor hidden(const ModelInput& input);
  // The head's weights are here as long as what this returns lives. For use of head_chunk().head_rows().
  std::shared_ptr<const void> hold_head() const;
  // fp32 [N]: log p(target) per row, 0 where the target is -100; undefined where this rank has no head.
  at::Tensor logprobs(const ModelInput& input, const at::Tensor& targets_N);
  Transformer& head_chunk() const { return executor_->head_chunk(); }

 private:
  void make_chunks(const ExperimentConfig& config, ParallelGroups& groups);

  std::unique_ptr<FrozenWeights> own_;
  FrozenWeights* weights_;
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
