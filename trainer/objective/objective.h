// What a step minimises. An objective is one file, objective/kinds/<kind>.cpp, which defines one
// ObjectiveKind of that name; the build finds it (trainer/CMakeLists.txt). It turns the rows behind the final
// norm into a loss on the rank with the head, may ask a frozen model (a teacher, a reference) about every
// micro-batch first, and says what else is reported. Made and called by every rank of the job alike. Not
// thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/teacher_cache.h"
#include "trainer/experiment_config.h"
#include "trainer/interchange/model_source.h"
#include "trainer/micro_batch.h"
#include "trainer/objective/frozen_model.h"

namespace hearth {

class TeacherClient;

// What an objective may build on. Borrowed; outlives it.
struct ObjectiveInputs {
  const ExperimentConfig& config;
  ParallelGroups& groups;
  at::Device device;
  MemoryLedger& memory;  // of the run: where a model that the objective makes is counted
  // The weights that the run began from: those of model.init_from (resident here already as the frozen base
  // of adapters, or to be read from `init_from`). Null where the run began from random weights.
  FrozenModel* base = nullptr;
  const ModelBundle* init_from = nullptr;
  const ModelBundle* teacher = nullptr;
  const TeacherCache* teacher_cache = nullptr;
  TeacherClient* teacher_client = nullptr;  // to `teacher` on ranks of its own
};

class Objective {
 public:
  virtual ~Objective() = default;
  // Names of what is summed beside the loss, each reported as its sum / the count below: the second and
  // further entries of LossResult::sums.
  virtual std::vector<std::string> metrics() const { return {}; }
  int64_t num_sums() const { return 1 + static_cast<int64_t>(metrics().size()); }
  // Completes a micro-batch with what the objective needs of its samples: rewrites valid_targets, by which
  // the loss is divided once it is summed over the step, where that is not the number of tokens.
  virtual void describe(const std::vector<Sample>& /*samples*/, MicroBatch& /*batch*/) {}
  // Asks the frozen model; collective over the pipeline and tensor-parallel ranks. Before any of the step's
  // other communication where stages are several, else any time before loss().
  virtual void consult(MicroBatch& /*batch*/) {}
  virtual bool consults() const { return false; }
  // Micro-batches that are read (and described) ahead of the one that is computed, since what describe() asks
  // for takes its time.
  virtual int64_t reads_ahead() const { return 0; }
  // Here: the sum of the next token's cross-entropy over the tokens that count.
  virtual LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch);
  // The same sums for held-out data, without gradients.
  virtual at::Tensor evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch);
};

struct ObjectiveKind {
  const char* name;  // objective.kind
  std::unique_ptr<Objective> (*make)(const ObjectiveInputs& inputs);
};
// All kinds, as the build found them.
const std::vector<const ObjectiveKind*>& objective_kinds();
std::unique_ptr<Objective> make_objective(const ObjectiveInputs& inputs);

}  // namespace hearth
