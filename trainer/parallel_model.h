// One rank's share of the model under a layout, ready to train: parameters, optimizer, the chunks of the
// pipeline and the schedule that runs them, all made from the experiment file and the groups. Collective:
// every rank of the job makes it and calls it alike. Borrows the groups. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/experiment_config.h"
#include "trainer/inference_model.h"
#include "trainer/micro_batch.h"
#include "trainer/optimizer/distributed_optimizer.h"
#include "trainer/parallel_groups.h"
#include "trainer/pipeline/pipeline_executor.h"

namespace hearth {

// Sums over all ranks.
struct StepTotals {
  double loss_sum = 0, valid_tokens = 0, squared_norm = 0;
  bool stop = false;  // some rank was asked to stop
};

// What the experiment file asks of the pieces below. Pure.
RecomputeChoice recompute_choice(const RecomputeConfig& config);
StoreOptions store_options(const ExperimentConfig& config, int64_t data_parallel_size, at::Device device);

class ParallelModel {
 public:
  // `config` is resolved, model.vocab_size is set. Parameters hold no values until a start below.
  ParallelModel(const ExperimentConfig& config, ParallelGroups& groups, at::Device device);

  // Counter-based initial weights, the same for every layout.
  void initialize(uint64_t seed);
  // Weights of another model; the optimizer starts new.
  void load_weights(const TensorSource& source);

  // What this rank found, to be summed over ranks.
  struct LocalSums {
    at::Tensor loss_sum;       // scalar on the device; 0 on ranks whose loss another rank counts
    int64_t valid_tokens = 0;  // 0 there too
    at::Tensor squared_norm;   // fp64 [1] on the device
  };
  // Forward and backward of a step; gradients are then sums over all ranks.
  LocalSums forward_backward(const PipelineExecutor::NextMicroBatch& next,
                             const PipelineExecutor::Observer& observer);
  // Sum of losses of a micro-batch, no gradients.
  LocalSums evaluate(const MicroBatch& batch);
  // The same weights, for generation; the ranks of a replica use it alike.
  InferenceModel inference();
  // The only wait for the device in a step.
  StepTotals sum_over_ranks(const LocalSums& mine, bool stop_requested);

  int64_t micro_batches_per_step() const { return micro_batches_; }
  ParameterStore& parameters() { return *parameters_; }
  DistributedOptimizer& optimizer() { return *optimizer_; }
  // Of this pipeline rank, in the order of the schedule's chunks; at least one.
  Transformer& chunk(size_t index) { return *chunks_[index]; }
  size_t num_chunks() const { return chunks_.size(); }
  at::Device device() const { return device_; }

 private:
  ModelContext model_context(const ParallelConfig& config, const PipelineSchedule& schedule);
  LocalSums counted(at::Tensor loss_sum, int64_t valid_tokens, at::Tensor squared_norm) const;

  ParallelGroups& groups_;
  at::Device device_;
  int64_t micro_batches_;
  bool counts_loss_;  // of the ranks that compute the same loss, this one adds it to the totals
  std::unique_ptr<ParameterStore> parameters_;
  std::unique_ptr<DistributedOptimizer> optimizer_;
  // Only for schedules with the overlapped action, where there are waits to overlap; the chunks'
  // communicators then.
  std::unique_ptr<SideBySide> side_by_side_;
  std::unique_ptr<Comm> tensor_by_turns_, context_by_turns_;
  std::vector<std::unique_ptr<Transformer>> chunks_;
  std::unique_ptr<PipelineExecutor> executor_;
  std::vector<int64_t> gradient_uses_;  // per parameter, in one micro-batch
};

}  // namespace hearth
