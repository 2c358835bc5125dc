// Learning rate of a step: linear warm-up, then cosine, linear, constant or WSD (warm-up, stable, decay) down
// to min_lr. A pure function of the step and of the configured horizon, never of where a run was cut.
// Formulas as in Megatron-LM's optimizer_param_scheduler. Thread-safe.
#pragma once

#include <cstdint>

#include "trainer/optimizer/optimizer_config.h"

namespace hearth {

// Rate used by step `step` (0-based: the first update is step 0). `train_iters` is the horizon where
// lr_decay_iters is null.
double learning_rate(const OptimizerConfig& config, int64_t train_iters, int64_t step);

}  // namespace hearth
