#include "trainer/objective/objective.h"

#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace hearth {

std::vector<double> Objective::reported(const std::vector<double>& sums, double count) const {
  std::vector<double> means = sums;
  for (double& mean : means) mean /= count;
  return means;
}

// The division by the global count of valid tokens happens once, in the update.
LossResult Objective::loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) {
  return linear_cross_entropy(hidden_nD, batch.targets_N, head.head(), /*scale=*/1.0);
}

at::Tensor Objective::evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) {
  return head.logprobs(hidden_nD, batch.targets_N).to(at::kDouble).sum().neg().view({1});
}

std::unique_ptr<Objective> make_objective(const ObjectiveInputs& inputs) {
  for (const ObjectiveKind* kind : objective_kinds())
    if (inputs.config.objective.kind == kind->name) return kind->make(inputs);
  fail(ErrorKind::Config, "objective.kind '{}' is not known", inputs.config.objective.kind);
}

}  // namespace hearth
