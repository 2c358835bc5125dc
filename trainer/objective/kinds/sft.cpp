// Supervised fine-tuning: mean cross-entropy over the trained tokens of conversations, which `hearth data
// prepare` marked (the shards' loss mask). Divided by their number in the whole step, never by a mean per
// sample.
#include "trainer/objective/objective.h"

namespace hearth {

extern const ObjectiveKind kObjective_sft;
const ObjectiveKind kObjective_sft{"sft",
                                   [](const ObjectiveInputs&) { return std::make_unique<Objective>(); }};

}  // namespace hearth
