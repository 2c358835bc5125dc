// How many layers each virtual stage of a pipeline gets. Pure and thread-safe.
#pragma once

#include <vector>

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

// A split that the user wrote: Error{Config} unless there is one entry per virtual stage, each at least 1,
// and they add up to `layers`.
void check_split(const std::vector<int>& split, int layers, int virtual_stages);

}  // namespace hearth
