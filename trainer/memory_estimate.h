// What a rank will hold, for `hearth train --dry-run`: parameters, gradients and optimizer state exactly, activations
// by the tensors that block_functions.h keeps. Pure arithmetic, bytes.
#pragma once

#include <cstdint>

#include "trainer/experiment_config.h"

namespace hearth {

struct MemoryEstimate {
  int64_t parameters = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0;
  int64_t total() const { return parameters + gradients + optimizer + activations + logits; }
};

MemoryEstimate estimate_memory(const ExperimentConfig& config, int64_t data_parallel_size);

}  // namespace hearth
