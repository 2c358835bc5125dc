// Mean cross-entropy of the next token over the tokens that count.
#include "trainer/objective/objective.h"

namespace hearth {
namespace {

class Pretrain : public Objective {
 public:
  LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    // The division by the global count of valid tokens happens once, in the update.
    return linear_cross_entropy(hidden_nD, batch.targets_N, head.head(), /*scale=*/1.0);
  }
};

}  // namespace

extern const ObjectiveKind kObjective_pretrain;
const ObjectiveKind kObjective_pretrain{"pretrain", [](const ObjectiveInputs&) -> std::unique_ptr<Objective> {
                                          return std::make_unique<Pretrain>();
                                        }};

}  // namespace hearth
