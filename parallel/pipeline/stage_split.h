// How many layers each virtual stage of a pipeline gets. Pure and thread-safe.
#pragma once

#include <vector>

#include "parallel/pipeline/schedule.h"

namespace hearth {

// In any one unit (seconds, flops); finite, layer > 0, the others >= 0.
struct StageCosts {
  double layer = 1;      // one transformer layer
  double embedding = 0;  // on the first virtual stage
  double head = 0;       // on the last: final norm, head and loss
};

// Layers per virtual stage, in model order; each at least 1. The largest cost of a stage is the smallest
// possible; among such splits the next largest is, and so on; among those the ends have the fewest layers,
// and the rest of the division goes to later stages, which hold fewer micro-batches in most schedules. Throws
// Error{Config} when there are fewer layers than virtual stages.
std::vector<int> split_layers(int layers, int virtual_stages, const StageCosts& costs);

// The same for a schedule (its lists may be empty). Where one rank holds both ends of the model (zbv,
// dualpipev), the largest cost of a rank is the smallest possible instead, then chunks of a rank are alike:
// there a rank takes turns with its chunks, and what one has too much the other can have less. The replay of
// such splits was up to 22% faster with a dear head (P 2 to 8, 16 to 64 layers, heads of 0 to 4 layers); for
// interleaved it was slower.
std::vector<int> split_layers(int layers, const PipelineSchedule& schedule, const StageCosts& costs);

// A split that the user wrote: Error{Config} unless there is one entry per virtual stage, each at least 1,
// and they add up to `layers`.
void check_split(const std::vector<int>& split, int layers, int virtual_stages);

}  // namespace hearth
