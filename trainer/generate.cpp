#include "trainer/generate.h"

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace hearth {

Generation generate(InferenceModel& model, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& on_token) {
  const ModelConfig& config = model.config();
  const auto length = static_cast<int64_t>(prompt.size());
  HEARTH_REQUIRE(length > 0, "the prompt encodes to no tokens; give at least one character");
  HEARTH_REQUIRE(length <= config.max_position_embeddings, "the prompt has {} tokens, the model's context {}",
                 length, config.max_position_embeddings);
  const int64_t limit = std::min(options.max_new_tokens, config.max_position_embeddings - length);
  auto caches = model.make_caches(length + std::max<int64_t>(limit, 0));
  const CounterRng rng(options.seed, "generate");
  std::vector<int64_t> pending(prompt.begin(), prompt.end());
  Generation out;
  for (int64_t i = 0; i < limit; ++i) {
    const at::Tensor logits = model.logits(pending, &caches, /*last=*/1);
    const int32_t token =
        sample_token({logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel()},
                     options.sampling, rng.uniform(static_cast<uint64_t>(i)));
    out.ids.push_back(token);
    if (on_token) on_token(token);
    if (std::find(options.eos_ids.begin(), options.eos_ids.end(), token) != options.eos_ids.end()) {
      out.finish = FinishReason::Stop;
      break;
    }
    pending = {token};
  }
  return out;
}

}  // namespace hearth
