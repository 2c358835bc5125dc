// The least time that a training step could take on this card: its matrix products and attention at the rates
// that the same kernels reach alone, back to back, and the bytes of everything else at the rate of a plain
// copy; all measured in this process on random data (zeros run faster: the card is limited by power). Idea:
// Williams, Waterman, Patterson 2009. Of one rank without tensor, pipeline or context parallelism, full
// training. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/experiment_config.h"

namespace hearth {

// Bytes that a step must move through device memory besides its matrix products and attention: every tensor
// that a fused kernel reads or writes, once. `micro_batches` of one rank. Pure.
struct StepBytes {
  int64_t activations = 0;  // norms, rotations, activation functions, residuals, of all micro-batches
  int64_t loss = 0;         // logits read once, their gradient written once
  int64_t embedding = 0;
  int64_t optimizer = 0;  // gradient norm and update
  int64_t total() const { return activations + loss + embedding + optimizer; }
};
StepBytes step_bytes(const ExperimentConfig& config, int64_t micro_batches);

struct Roofline {
  double copy_bytes_per_second = 0;  // read + written
  double gemm_flops_per_second = 0, attention_flops_per_second = 0;
  double gemm_seconds = 0, attention_seconds = 0, bytes_seconds = 0;  // of a step
  double step_seconds() const { return gemm_seconds + attention_seconds + bytes_seconds; }
};

// Takes several seconds on a GPU and the memory of one layer. `seconds`: of each measurement.
Roofline measure_roofline(const ExperimentConfig& config, int64_t micro_batches, at::Device device,
                          double seconds);

}  // namespace hearth
