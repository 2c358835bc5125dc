// Rules that need more than one section of the experiment file: one small named function per rule. Sections
// check themselves (their validate()).
#pragma once

#include "base/config_visit.h"
#include "launch/config_parser.h"
#include "parallel/mesh.h"

namespace hearth {

// All rules that need no world size. Called by load_experiment. A rule keeps silent where a section's own
// check speaks.
void validate_run(const LoadedConfig& loaded, ConfigErrors& errors);

// The mesh of the ranks that train, of a job of `world_size`: all but objective.teacher_ranks, which divide
// into teacher_mesh() (trainer/parallel_layout.h). Throws Error{Config} that prints every factor unless the
// ranks divide into the layout, and one that lists all that the layout cannot take: batch, heads, widths,
// rows, positions, layers, micro-batches.
Mesh require_layout(const LoadedConfig& loaded, int world_size);

}  // namespace hearth
