// Autoregressive generation of many sequences at once, with a key/value cache. All sequences of a group are
// at the same position: the group reads the tokens that all its prompts have, then goes on token by token,
// and a sequence whose prompt is longer takes the prompt's token in place of a sampled one (as the generation
// that was published with Llama does: Touvron et al. 2023). So nothing is padded and no mask is needed.
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "trainer/inference_model.h"

namespace hearth {

struct BatchPrompt {
  std::vector<int32_t> ids;    // at least one
  int64_t max_new_tokens = 1;  // >= 1; with the prompt at most max_position_embeddings
  uint64_t first_draw = 0;     // new token i is decided by draw first_draw + i
};

struct BatchGenerationOptions {
  double temperature = 1.0;      // 0 = greedy
  int64_t vocab = 0;             // ids [0, vocab) are drawn
  std::vector<int32_t> eos_ids;  // a sequence ends after any of these
  // A group is that small: sequences x their longest length, where it has more than one.
  int64_t tokens_per_group = 0;
};

// Calls of the model that generate_batch makes for the prompts by itself. Pure.
int64_t generation_calls(const std::vector<BatchPrompt>& prompts, const BatchGenerationOptions& options);

// The new tokens of each prompt, an ending EOS included. They depend on the prompt, the weights and the draws
// of `rng`, not on the other prompts, but for rounding: a product of matrices of another height may sum in
// another order. Makes exactly `calls` calls of the model, at least generation_calls(): where parameters are
// sharded over replicas, these make as many. Collective as InferenceModel is.
std::vector<std::vector<int32_t>> generate_batch(InferenceModel& model,
                                                 const std::vector<BatchPrompt>& prompts,
                                                 const BatchGenerationOptions& options, const CounterRng& rng,
                                                 int64_t calls);

}  // namespace hearth
