// The scalars of one AdamW step and the rounding of its bf16 states: shared by the launcher and the CPU loop.
#pragma once

#include <cstdint>

#include "kernels/counter_hash.h"

namespace hearth::kernels {

// The scalars of a step, each computed in fp64 and rounded once.
struct AdamWScalars {
  float grad_scale;         // multiplies the gradient first
  float decay;              // 1 - lr * weight_decay
  float beta1_rest;         // 1 - beta1
  float beta2, beta2_rest;  // beta2, 1 - beta2
  float eps;
  float negative_step_size;     // -lr / (1 - beta1^step)
  float bias_correction2_sqrt;  // sqrt(1 - beta2^step)
};

// The 16 random bits that round one state of an element, of the element's draw: counter_bits(seed of the step
// and buffer, index). One draw serves all three, for hashing costs more than the update itself.
enum class AdamWState { Master, ExpAvg, ExpAvgSq };
HEARTH_HOST_DEVICE uint32_t rounding_bits(uint64_t draw, AdamWState state) {
  return static_cast<uint32_t>(draw >> 16 * static_cast<int>(state)) & 0xffffu;
}

// The bits of a float rounded to bf16 up or down with probabilities that make it right on average: what is
// too small for the nearest bf16 to move is not lost over many steps (Gupta et al. 2015). Not for what is not
// finite.
HEARTH_HOST_DEVICE uint32_t stochastic_bf16_bits(uint32_t float_bits, uint32_t random_16) {
  const bool finite = (float_bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (float_bits + random_16) >> 16
                : (float_bits >> 16) | ((float_bits & 0xffffu) != 0 ? 0x40u : 0u);
}

}  // namespace hearth::kernels
