// Supervised fine-tuning: mean cross-entropy over the trained tokens of conversations, which `hearth data
// prepare` marked (the shards' loss mask). Divided by their number in the whole step, never by a mean per
// sample.
#include "trainer/objective/objective.h"

namespace hearth {
namespace {

class Sft : public Objective {
 public:
  LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    return linear_cross_entropy(hidden_nD, batch.targets_N, head.head(), /*scale=*/1.0);
  }
};

}  // namespace

extern const ObjectiveKind kObjective_sft;
const ObjectiveKind kObjective_sft{
    "sft", [](const ObjectiveInputs&) -> std::unique_ptr<Objective> { return std::make_unique<Sft>(); }};

}  // namespace hearth
