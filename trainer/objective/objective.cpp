#include "trainer/objective/objective.h"

#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace hearth {

at::Tensor Objective::evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) {
  return head.logprobs(hidden_nD, batch.targets_N).to(at::kDouble).sum().neg().view({1});
}

std::unique_ptr<Objective> make_objective(const ObjectiveInputs& inputs) {
  for (const ObjectiveKind* kind : objective_kinds())
    if (inputs.config.objective.kind == kind->name) return kind->make(inputs);
  fail(ErrorKind::Config, "objective.kind '{}' is not known", inputs.config.objective.kind);
}

}  // namespace hearth
