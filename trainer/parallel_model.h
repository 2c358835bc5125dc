// One rank's share of the model under a layout, ready to train: parameters, optimizer, the chunks of the
// pipeline, the schedule that runs them and the objective, all made from the experiment file and the groups.
// With objective.lora_rank the model's own parameters are frozen and the trained ones are adapters.
// Collective: every rank of the job makes it and calls it alike. Borrows the groups. Not thread-safe.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/experiment_config.h"
#include "trainer/inference_model.h"
#include "trainer/interchange/model_source.h"
#include "trainer/metrics.h"
#include "trainer/micro_batch.h"
#include "trainer/objective/objective.h"
#include "trainer/optimizer/distributed_optimizer.h"
#include "trainer/parallel_groups.h"
#include "trainer/pipeline/pipeline_executor.h"
#include "trainer/step_graph.h"

namespace hearth {

// Sums over all ranks.
struct StepTotals {
  double loss_sum = 0, valid_tokens = 0, squared_norm = 0;
  std::vector<double> metrics;  // sums of Objective::metrics()
  bool stop = false;            // some rank was asked to stop
  double lm_loss() const { return loss_sum / valid_tokens; }
  double grad_norm() const { return std::sqrt(squared_norm) / valid_tokens; }
};

// Models that a run reads beside the one that it trains. Borrowed while a ParallelModel is made and started.
struct OtherModels {
  const ModelBundle* init_from = nullptr;       // model.init_from
  const ModelBundle* teacher = nullptr;         // objective.teacher
  const TeacherCache* teacher_cache = nullptr;  // objective.teacher_cache; as long as the model lives
  TeacherClient* teacher_client = nullptr;      // of objective.teacher_ranks; as long as the model lives
};

// What the experiment file asks of the pieces below. Pure.
RecomputeChoice recompute_choice(const RecomputeConfig& config);
// Whole-model specs of what a run trains: the model's parameters, or its adapters.
std::vector<ParameterSpec> trained_parameter_specs(const ExperimentConfig& config);
// Whether adapters go on with those that the model to start from has, rather than begin on top of them.
bool continues_adapters(const ObjectiveConfig& objective, const ModelBundle* init_from);
StoreOptions store_options(const ExperimentConfig& config, int64_t data_parallel_size, at::Device device);
// Of the weights below adapters.
FrozenForm base_form(const ExperimentConfig& config, int64_t data_parallel_size);

class ParallelModel {
 public:
  // `config` is resolved, model.vocab_size is set. Parameters hold no values until a start below.
  ParallelModel(const ExperimentConfig& config, ParallelGroups& groups, at::Device device,
                const OtherModels& others = {});

  // The weights of `init_from`, else counter-based initial ones, the same for every layout. Adapters begin
  // with those of `init_from` where it has some of the same shape, on its base; else anew, on the whole of
  // it. The optimizer starts new.
  void start(uint64_t seed, const ModelBundle* init_from);
  void initialize(uint64_t seed) { start(seed, nullptr); }
  // Continues from a checkpoint; `init_from` gives the weights below the adapters, and is not needed without.
  void resume(const TensorSource& checkpoint, const ModelBundle* init_from);

  // From now on steps without an observer may run as CUDA graphs (trainer/step_graph.h), as
  // training.cuda_graph says. `log` outlives this and is told why not where they cannot.
  void allow_graphs(const ExperimentConfig& config, Log& log);

  // Samples as the chunks and the objective take them.
  MicroBatch micro_batch(const std::vector<Sample>& samples, DocumentMask mask);
  // The same of training data, into which the objective may let the model write first. For `next` below.
  MicroBatch training_micro_batch(std::vector<Sample> samples, DocumentMask mask);
  Objective& objective() { return *objective_; }

  // What this rank found, to be summed over ranks.
  struct LocalSums {
    at::Tensor sums;           // [objective().num_sums()] on the device, the loss first; without what
                               // another rank counts
    int64_t valid_tokens = 0;  // 0 there too
    at::Tensor squared_norm;   // fp64 [1] on the device
  };
  // Objective::metrics() and what is reported of them.
  NamedValues objective_metrics(const StepTotals& totals) const;
  // Forward and backward of a step; gradients are then sums over all ranks.
  LocalSums forward_backward(const PipelineExecutor::NextMicroBatch& next,
                             const PipelineExecutor::Observer& observer);
  // The sums of a micro-batch, no gradients.
  LocalSums evaluate(MicroBatch batch);
  LocalSums no_sums() const;
  // The same weights, for generation; the ranks of a replica use it alike.
  InferenceModel inference();
  // The only wait for the device in a step.
  StepTotals sum_over_ranks(const LocalSums& mine, bool stop_requested);

  // The update of a step, with gradients clipped to a norm of `clip_grad` (0: not clipped). Where the loss or
  // the gradient is not finite, parameters stay as they are and the result is false; all ranks find the same.
  bool update(const StepTotals& totals, double learning_rate, double clip_grad);

  int64_t micro_batches_per_step() const { return micro_batches_; }
  // What is trained: the model's parameters, or its adapters.
  ParameterStore& parameters() { return *parameters_; }
  DistributedOptimizer& optimizer() { return *optimizer_; }
  // Of this pipeline rank, in the order of the schedule's chunks; at least one.
  Transformer& chunk(size_t index) { return *chunks_[index]; }
  size_t num_chunks() const { return chunks_.size(); }
  at::Device device() const { return device_; }

 private:
  ModelContext training_context(const ParallelConfig& config, const PipelineSchedule& schedule);
  LocalSums eager_step(const PipelineExecutor::NextMicroBatch& next,
                       const PipelineExecutor::Observer& observer);
  LocalSums counted(at::Tensor sums, int64_t valid_tokens, at::Tensor squared_norm);

  const TensorSource& base_weights(const ModelBundle& init_from) const;

  ParallelGroups& groups_;
  ObjectiveConfig objective_config_;
  at::Device device_;
  int64_t micro_batches_;
  bool counts_loss_;  // of the ranks that compute the same loss, this one adds it to the totals
  std::unique_ptr<ParameterStore> parameters_;
  std::unique_ptr<FrozenWeights> frozen_;  // the model below the adapters; null: parameters_ is the model
  std::optional<Adapters> adapters_;
  std::unique_ptr<DistributedOptimizer> optimizer_;
  std::unique_ptr<BothEvents> events_;  // null: the optimizer alone is told
  // Only for schedules with the overlapped action, where there are waits to overlap; the chunks'
  // communicators then.
  std::unique_ptr<SideBySide> side_by_side_;
  std::unique_ptr<Comm> tensor_by_turns_, context_by_turns_;
  std::vector<std::unique_ptr<Transformer>> chunks_;
  std::unique_ptr<PipelineExecutor> executor_;
  std::unique_ptr<FrozenModel> base_;  // the model without its adapters
  std::unique_ptr<Objective> objective_;
  PipelineExecutor::HeadLoss head_loss_;
  std::unique_ptr<StepGraph> graph_;    // null: all steps are eager
  int64_t reads_ahead_ = 0;             // micro-batches, of the one that is computed
  std::vector<int64_t> gradient_uses_;  // per parameter, in one micro-batch
};

}  // namespace hearth
