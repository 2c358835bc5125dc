#include "trainer/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace hearth {
namespace {

// Feeds `ids` behind the cache and returns the logits of the last one, fp32 on the host.
std::vector<float> next_logits(Transformer& model, const std::vector<int64_t>& ids, KvCache& cache) {
  ModelInput input;
  input.ids_N = at::tensor(ids, at::kLong).to(model.device());
  input.layout.batch = 1;
  input.layout.sequence = static_cast<int64_t>(ids.size());
  const at::Tensor hidden = model.hidden_states(input, &cache);
  const at::Tensor row = model.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).to(at::kCPU, at::kFloat).contiguous();
  const float* data = row.data_ptr<float>();
  return {data, data + row.numel()};
}

}  // namespace

Generation generate(Transformer& model, std::span<const int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(int32_t)>& on_token) {
  const at::NoGradGuard no_grad;
  const ModelConfig& config = model.config();
  const auto length = static_cast<int64_t>(prompt.size());
  HEARTH_REQUIRE(length > 0, "the prompt encodes to no tokens; give at least one character");
  HEARTH_REQUIRE(length <= config.max_position_embeddings, "the prompt has {} tokens, the model's context {}", length,
                 config.max_position_embeddings);
  const int64_t limit = std::min(options.max_new_tokens, config.max_position_embeddings - length);
  KvCache cache(config.num_hidden_layers, 1, length + std::max<int64_t>(limit, 0), config.kv_heads(),
                config.head_width(), at::TensorOptions(model.device()).dtype(model.scalar_type()));
  const CounterRng rng(options.seed, "generate");
  std::vector<int64_t> pending(prompt.begin(), prompt.end());
  Generation out;
  for (int64_t i = 0; i < limit; ++i) {
    const int32_t token =
        sample_token(next_logits(model, pending, cache), options.sampling, rng.uniform(static_cast<uint64_t>(i)));
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
