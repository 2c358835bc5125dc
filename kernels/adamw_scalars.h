// The scalars of one AdamW step and the rounding of its bf16 states: shared by the launcher and the CPU loop.
#pragma once

#include <cstdint>

#include "kernels/counter_hash.h"  // HEARTH_HOST_DEVICE

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

// The random bits that round the states of an element: 32 for the element of that number in a step's buffer,
// from which each state takes 16 of its own. One draw serves all three, and it is short, for hashing costs as
// much as the update itself. A bijection of the lower 32 bits of the number (Wellons, hash prospector:
// lowbias32) over a seed of the step and buffer.
HEARTH_HOST_DEVICE uint32_t rounding_draw(uint64_t seed, uint64_t number) {
  uint32_t x = static_cast<uint32_t>(number) ^ static_cast<uint32_t>(seed);
  x += static_cast<uint32_t>(number >> 32) * 0x9e3779b9u + static_cast<uint32_t>(seed >> 32);
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

enum class AdamWState { Master, ExpAvg, ExpAvgSq };
HEARTH_HOST_DEVICE uint32_t rounding_bits(uint32_t draw, AdamWState state) {
  if (state == AdamWState::Master) return draw & 0xffffu;
  return (state == AdamWState::ExpAvg ? draw : draw * 0x9e3779b9u) >> 16;
}

// The bits of a float rounded to bf16 up or down with probabilities that make it right on average: what is
// too small for the nearest bf16 to move is not lost over many steps (Gupta et al. 2015). What is not finite
// stays so.
HEARTH_HOST_DEVICE uint32_t stochastic_bf16_bits(uint32_t float_bits, uint32_t random_16) {
  const uint32_t sum = (float_bits & 0x7fffffffu) + random_16;
  const uint32_t magnitude = sum < 0x7fffffffu ? sum : 0x7fffffffu;  // a NaN of all ones must not wrap around
  return (magnitude >> 16) | (float_bits >> 16 & 0x8000u);
}

}  // namespace hearth::kernels
