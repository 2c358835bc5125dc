// What all ranks must agree on before step 1: one exchange, and every disagreement is named with the odd
// ranks.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "parallel/control_plane.h"

namespace hearth {

// (what, this rank's value): {"build id", ...}, {"config hash", ...}, {"dataset digest", ...},
// {"tokenizer digest", ...}, {"run folder", contents of a nonce file that rank 0 wrote there}, ...
using Facts = std::vector<std::pair<std::string, std::string>>;

// Throws Error{Config} on every rank, naming each fact that differs, the odd ranks, and both values. The
// value of most ranks counts as the expected one; a tie goes to the lower rank. Every rank passes the same
// names in the same order.
void require_agreement(ControlPlane& control, const Facts& mine);

}  // namespace hearth
