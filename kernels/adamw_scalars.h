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

enum class AdamWState { Master, ExpAvg, ExpAvgSq };

// A bijection that mixes well (Wellons, hash prospector: lowbias32).
HEARTH_HOST_DEVICE constexpr uint32_t mix_32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The random bits that round the states: kRoundingGroup elements that follow a multiple of it share one draw,
// and each state of each of them takes the upper half of that draw times an odd factor of its own. A product
// with an odd number is a bijection, so every state sees each of the 2^16 values equally often, and factors
// without a simple ratio keep the products apart (a multiplicative congruential generator, Lehmer). A hash
// for each state would take longer than the update and its memory.
constexpr int kRoundingGroup = 8;
HEARTH_HOST_DEVICE uint32_t rounding_draw(uint64_t seed, uint64_t group) {
  const uint32_t x = static_cast<uint32_t>(group) ^ static_cast<uint32_t>(seed);
  return mix_32(x + static_cast<uint32_t>(group >> 32) * 0x9e3779b9u + static_cast<uint32_t>(seed >> 32));
}
// `place` in the group, from 0; a constant where that is one.
HEARTH_HOST_DEVICE constexpr uint32_t rounding_factor(int place, AdamWState state) {
  return mix_32(3u * static_cast<uint32_t>(place) + static_cast<uint32_t>(state) + 1u) | 1u;
}
HEARTH_HOST_DEVICE uint32_t rounding_bits(uint32_t draw, uint32_t factor) {
  return (draw * factor) >> 16;
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
