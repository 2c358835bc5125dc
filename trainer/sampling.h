// Choosing the next token from logits: greedy, temperature, nucleus (top-p: Holtzman et al. 2020). Pure
// functions.
#pragma once

#include <cstdint>
#include <span>

namespace hearth {

struct SamplingOptions {
  double temperature = 0.0;  // 0 = greedy
  double top_p = 1.0;        // keep the smallest set of tokens whose probability reaches this
};

// `uniform` in [0, 1) decides; greedy takes the lowest id among equals. Throws Error{Numeric} for non-finite
// logits.
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace hearth
