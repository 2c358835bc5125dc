#include "trainer/pipeline_costs.h"

#include <algorithm>

#include "trainer/parallel_layout.h"

namespace hearth {

ScheduleCosts pipeline_costs(const ExperimentConfig& config, const PipelineSchedule& schedule) {
  const ModelConfig& m = config.model;
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  ModelConfig layers_only = m;
  layers_only.vocab_size = 1;
  const double tokens =
      real(config.training.micro_batch_size * config.data.seq_length) /
      real(config.parallel.context_parallel_size * config.parallel.tensor_model_parallel_size);
  const double forward = tokens * model_flops(layers_only, config.data.seq_length).per_token_causal / 3 /
                         real(m.num_hidden_layers);
  // QK^T and PV, 2 x 2 x S x heads x head_dim a token, half of it under the causal mask.
  const double attention = tokens * 2 * real(config.data.seq_length * m.num_attention_heads * m.head_width());
  const double head = tokens * 2 * real(m.vocab_size * m.hidden_size);

  const auto& modules = config.recompute.modules;
  const bool selective = config.recompute.granularity == "selective";
  double rebuilt = config.recompute.granularity == "full" ? forward : 0;
  if (selective && std::find(modules.begin(), modules.end(), "core_attn") != modules.end())
    rebuilt = attention;

  ScheduleCosts costs;
  for (const int layers : layers_per_stage(config, schedule))
    costs.times.push_back({.forward = layers * forward,
                           .backward_input = layers * (forward + attention + rebuilt),
                           .backward_weight = layers * (forward - attention)});
  costs.times.back().forward += 3 * head;
  return costs;
}

}  // namespace hearth
