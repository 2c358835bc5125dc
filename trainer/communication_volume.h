// What one rank sends to other ranks in a training step, by formulas: for `hearth plan` and for the tables of
// parallel/README.md, which derive them. tests/trainer/communication_volume_test.cpp compares them with the
// bytes that a step really sends. Pure arithmetic; no torch, no communication.
#pragma once

#include <cstdint>

#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/experiment_config.h"

namespace hearth {

// Bytes that a rank sends in a step; it receives as many, but for the ends of a pipeline. A reduce-scatter or
// all-gather of D bytes over n ranks counts (n-1)/n D, an all-reduce twice that: what a ring and a direct
// exchange both send (Patarasuk & Yuan 2009). Left out: the one all-reduce of 32 bytes for loss and norm, and
// the padding of buckets.
struct CommunicationVolume {
  int64_t tensor = 0;      // activations over the tensor-parallel group
  int64_t pipeline = 0;    // activations and their gradients to the neighbour stages
  int64_t context = 0;     // keys and values (ring), or rows for heads (all-to-all)
  int64_t gradients = 0;   // over data x context parallel ranks, sharded copies among each other included
  int64_t weights = 0;     // over those of one copy: ZeRO 1 and 2 after the update, ZeRO 3 for each use
  int64_t replicated = 0;  // gradients of what several ranks hold besides: norms and shared kv heads under
                           // tensor parallelism, a tied table on both ends of the pipeline
  int64_t total() const { return tensor + pipeline + context + gradients + weights + replicated; }
};

// `schedule` has its transfers (pipeline_schedule()). Exact but for zero_stage 2 and 3, where it is an upper
// bound: micro- batches that a schedule runs through a unit at once share its gathers and sums.
CommunicationVolume communication_volume(const ExperimentConfig& config, const Mesh& mesh,
                                         const PipelineSchedule& schedule, int rank);

}  // namespace hearth
