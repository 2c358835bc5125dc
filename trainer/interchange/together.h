// Runs local work on every rank and makes its failure everybody's: no rank goes on, or waits, after another's
// error.
#pragma once

#include <functional>
#include <string_view>

#include "parallel/control_plane.h"

namespace hearth {

// Collective. Calls `work` (which must not communicate) and then votes. Where some rank threw, every rank
// throws: its own error, or, where it was fine, an error of the first failing rank's kind that names rank and
// message.
void run_together(ControlPlane& control, std::string_view site, const std::function<void()>& work);

}  // namespace hearth
