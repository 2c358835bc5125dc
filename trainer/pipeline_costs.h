// Costs of a model's pipeline stages in flops, for the replay of parallel/pipeline/simulator.h. Pure.
#pragma once

#include "parallel/pipeline/simulator.h"
#include "trainer/experiment_config.h"

namespace hearth {

// Times are flops of one micro-batch on one rank (its tensor- and context-parallel share), so seconds at one
// flop a second. A layer: G for its matrices and A for attention (causal half) forward, G + 2A for the input
// gradient, G for the weight gradient; what is rebuilt counts with the input gradient. The last virtual stage
// computes logits, loss and both gradients of the head within its Forward, as trainer/model/block_functions.h
// does. The lookup costs nothing.
ScheduleCosts pipeline_costs(const ExperimentConfig& config, const PipelineSchedule& schedule);

}  // namespace hearth
