// Mean cross-entropy of the next token over the tokens that count.
#include "trainer/objective/objective.h"

namespace hearth {

extern const ObjectiveKind kObjective_pretrain;
const ObjectiveKind kObjective_pretrain{"pretrain",
                                        [](const ObjectiveInputs&) { return std::make_unique<Objective>(); }};

}  // namespace hearth
