// Replays a pipeline schedule against given costs: total time, bubble and peak activations per rank, and when
// each action runs. The list replayed is the one that an executor runs, transfers included. Pure and
// thread-safe; no clock.
//
// The published bubbles and peaks of all kinds, with their sources and the costs for which they hold, stand
// in README.md; tests/parallel/pipeline/simulator_test.cpp asks for equality with them.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace hearth {

struct StageTimes {
  double forward = 1, backward_input = 1, backward_weight = 1;  // seconds; a full Backward takes the sum
};

// What the Forward of a chunk leaves for its backward.
struct ActivationBytes {
  int64_t forward = 0;  // from the start of Forward to the end of Backward or BackwardInput
  int64_t weight = 0;   // what stays of it from the end of BackwardInput to the end of BackwardWeight
};

struct ScheduleCosts {
  std::vector<StageTimes> times;             // [virtual stages]
  std::vector<ActivationBytes> activations;  // [virtual stages], or empty: peak_bytes is 0
  // Seconds from the moment both ends have posted a transfer; one at a time in each direction between two
  // ranks.
  double transfer = 0;
  // Share of the shorter half that a ForwardBackward hides: 0 takes the sum of both halves, 1 the longer one.
  double overlap = 0;
};
// The same times on every virtual stage, no bytes, no transfer time.
ScheduleCosts uniform_costs(const PipelineSchedule& schedule, const StageTimes& times);

struct SimulatedAction {
  Action action;      // a compute action
  double start, end;  // seconds from the start of the step
};

struct SimulatedRank {
  std::vector<SimulatedAction> actions;
  double busy = 0;         // seconds in compute actions
  double idle = 0;         // total - busy: the bubble
  double idle_inside = 0;  // the part of it between the first and the last action
  // Largest number of (chunk, micro) pairs whose Forward has begun and whose last backward has not ended.
  int peak_activations = 0;
  int64_t peak_bytes = 0;
};

struct Simulation {
  double total = 0;  // seconds until the last rank is done
  std::vector<SimulatedRank> ranks;

  double bubble() const;           // largest idle of a rank, seconds
  double bubble_fraction() const;  // idle of all ranks / (ranks x total)
};

// Adds the transfers where the schedule has none. Throws Error{Usage} for costs that do not fit the schedule,
// and Error{Internal} for a schedule that check_schedule refuses.
Simulation simulate(const PipelineSchedule& schedule, const ScheduleCosts& costs);

}  // namespace hearth
