// Autoregressive generation with a key/value cache, one sequence at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "trainer/inference_model.h"
#include "trainer/sampling.h"

namespace hearth {

struct GenerationOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  uint64_t seed = 1234;
  std::vector<int32_t> eos_ids;  // generation ends after any of these
};

enum class FinishReason { Stop, Length };  // an end-of-sequence token; the token or position limit

struct Generation {
  std::vector<int32_t> ids;  // new tokens, an ending EOS included
  FinishReason finish = FinishReason::Length;
};

// Draw i of a generation depends on (seed, i) only; all ranks of a replica draw the same. `on_token` (may be
// empty) sees each new token at once. Throws Error{Usage} for an empty prompt or one longer than
// max_position_embeddings.
Generation generate(InferenceModel& model, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& on_token);

}  // namespace hearth
