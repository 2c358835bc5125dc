// The training loop of one rank: model, optimizer, data, evaluation, checkpoints. Everything outside (files,
// ranks, clocks, signals, configuration) is handed in. Not thread-safe; one Trainer a process.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/fault_plan.h"
#include "base/file_system.h"
#include "base/log.h"
#include "data/prefetcher.h"
#include "data/sampler.h"
#include "data/tokenizer/tokenizer.h"
#include "parallel/control_plane.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/device.h"
#include "trainer/experiment_config.h"
#include "trainer/metrics.h"
#include "trainer/micro_batch.h"
#include "trainer/parallel_groups.h"
#include "trainer/parallel_model.h"
#include "trainer/trace.h"
#include "trainer/train_state.h"

namespace hearth {

struct TrainerInputs {
  ExperimentConfig config;  // resolved and validated; model.vocab_size is set
  FileSystem& fs;
  ControlPlane& control;
  ParallelGroups& groups;
  Log& log;
  at::Device device;
  std::vector<WeightedDataset> train_datasets;
  std::vector<std::unique_ptr<Dataset>> validation_datasets;
  std::vector<std::unique_ptr<Dataset>> old_validation_datasets;  // objective.incremental.old_validation
  std::shared_ptr<const Tokenizer> tokenizer;  // of the datasets; travels in checkpoints and samples text
  CheckpointSaverOptions saver;                // folder, attempt, lock check
  std::string mesh;                            // for the checkpoint's identity
  std::string config_hash;
  nlohmann::json config_json;            // resolved config with the origin of each key
  nlohmann::json build_json;             // version, git commit, libraries
  std::string data_text;                 // the training data, for people
  std::function<bool()> stop_requested;  // USR1 or TERM arrived at this rank
  FaultInjector& faults;                 // of the tests; without a plan it does nothing
  StepTracer* tracer = nullptr;          // null: no trace
  OtherModels others;                    // borrowed while the Trainer is made and started
};

enum class TrainOutcome { Finished, Preempted };

class Trainer {
 public:
  explicit Trainer(TrainerInputs inputs);
  ~Trainer();

  // Start from scratch: the weights of model.init_from, or counter-based initial ones.
  void start();
  // Continue exactly where `checkpoint` was saved.
  void resume(const CheckpointReader& checkpoint);

  // Trains to train_iters, or to the step boundary after a stop request; saves the last step either way.
  // Throws Error{Numeric} when the loss or gradient stays non-finite.
  TrainOutcome run();

  const TrainState& state() const { return state_; }
  // Most that tensors held at once on this rank.
  int64_t peak_memory_bytes() { return model_.parameters().memory().peak_total(); }

 private:
  void begin_stream(const DataLedger& ledger);
  StepTotals forward_backward();
  StepMetrics train_step(bool& stop);
  void skip_update(const StepTotals& totals, int64_t step);
  StepTotals held_out_totals(const ValidationStream& stream);
  ValidationMetrics validate(int64_t step);
  double old_loss();
  void write_sample(int64_t step);
  void save(int64_t step);
  CheckpointIdentity identity(int64_t step) const;
  std::string state_json() const;
  bool stop_requested() const { return in_.stop_requested && in_.stop_requested(); }

  TrainerInputs in_;
  bool is_root_;
  BatchShape batch_;
  ParallelModel model_;
  std::optional<ModelConfig> teacher_;  // shape of one on the same ranks
  std::unique_ptr<SampleStream> stream_;
  std::unique_ptr<ValidationStream> validation_, old_validation_;
  std::unique_ptr<CheckpointSaver> saver_;
  std::unique_ptr<Prefetcher> prefetcher_;  // last: its threads read the streams
  TrainState state_;
  int64_t consecutive_skips_ = 0;
  bool poisoned_ = false;  // a test's fault made this step's loss a NaN
  int64_t last_saved_step_ = -1;
};

}  // namespace hearth
