#include "trainer/model/transformer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/gemm_op.h"
#include "kernels/rope_op.h"

namespace hearth {

Transformer::Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute)
    : config_(config), parameters_(parameters) {
  const auto table = [&](const std::string& name) {
    const Parameter& p = parameters_.at(name);
    return LinearWeights{p.padded_weight, {}, p.padded_main_grad, {}, {parameters_.index(name)}};
  };
  embedding_ = table("model.embed_tokens.weight");
  head_ = config_.tie_word_embeddings ? embedding_ : table("lm_head.weight");
  final_norm_ = norm_weights("model.norm.weight");
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const std::string p = fmt::format("model.layers.{}.", layer), attn = p + "self_attn.", mlp_prefix = p + "mlp.";
    auto block = std::make_unique<BlockWeights>();
    block->input_norm = norm_weights(p + "input_layernorm.weight");
    block->post_attention_norm = norm_weights(p + "post_attention_layernorm.weight");
    if (config_.qk_norm) {
      block->q_norm = norm_weights(attn + "q_norm.weight");
      block->k_norm = norm_weights(attn + "k_norm.weight");
    }
    block->qkv = linear_weights(attn + "q_proj", attn + "v_proj", config_.attention_bias);
    block->attention_output = linear_weights(attn + "o_proj", attn + "o_proj", config_.attention_output_bias);
    block->gate_up = linear_weights(mlp_prefix + "gate_proj", mlp_prefix + "up_proj", false);
    block->down = linear_weights(mlp_prefix + "down_proj", mlp_prefix + "down_proj", false);
    block->num_heads = config_.num_attention_heads;
    block->num_kv_heads = config_.kv_heads();
    block->head_width = config_.head_width();
    block->recompute = recompute;
    block->gradient_ready = &gradient_ready_;
    blocks_.push_back(std::move(block));
  }
  anchor_ = at::zeros({}, at::TensorOptions(device()).dtype(at::kFloat)).set_requires_grad(true);
  gradient_ready_ = [](int64_t) {};
}

LinearWeights Transformer::linear_weights(const std::string& first, const std::string& last, bool has_bias) {
  LinearWeights w;
  w.weight = parameters_.fused_weight(first + ".weight", last + ".weight");
  w.main_grad = parameters_.fused_main_grad(first + ".weight", last + ".weight");
  for (int64_t i = parameters_.index(first + ".weight"); i <= parameters_.index(last + ".weight"); ++i)
    w.parameters.push_back(i);
  if (has_bias) {
    w.bias = parameters_.fused_weight(first + ".bias", last + ".bias");
    w.bias_grad = parameters_.fused_main_grad(first + ".bias", last + ".bias");
    for (int64_t i = parameters_.index(first + ".bias"); i <= parameters_.index(last + ".bias"); ++i)
      w.parameters.push_back(i);
  }
  return w;
}

NormWeights Transformer::norm_weights(const std::string& name) {
  const Parameter& p = parameters_.at(name);
  return {p.weight, p.main_grad, config_.rms_norm_eps, {parameters_.index(name)}};
}

int64_t Transformer::uses_per_micro(int64_t parameter_index) const {
  return config_.tie_word_embeddings && parameter_index == embedding_.parameters[0] ? 2 : 1;
}

void Transformer::extend_rope_table(int64_t positions) {
  if (rope_table_.cos_PD2.defined() && rope_table_.cos_PD2.size(0) >= positions) return;
  const auto& s = config_.rope_scaling;
  const kernels::RopeFrequencies frequencies{
      .head_dim = config_.head_width(),
      .theta = config_.rope_theta,
      .scaling = s.rope_type == "llama3" ? kernels::RopeScalingKind::Llama3 : kernels::RopeScalingKind::Default,
      .factor = s.factor,
      .low_freq_factor = s.low_freq_factor,
      .high_freq_factor = s.high_freq_factor,
      .original_max_position_embeddings = s.original_max_position_embeddings};
  // Twice what is asked for, so that generation does not rebuild the table at every token.
  const int64_t rows = std::max(positions, std::min<int64_t>(config_.max_position_embeddings, 2 * positions));
  rope_table_ = kernels::rope_table(kernels::rope_inverse_frequencies(frequencies), rows, device());
}

at::Tensor Transformer::hidden_states(const ModelInput& input, KvCache* cache) {
  const auto& layout = input.layout;
  const int64_t first = cache != nullptr ? cache->length : 0;
  extend_rope_table(first + layout.sequence);
  const at::Tensor positions = at::arange(first, first + layout.sequence, at::TensorOptions(device()).dtype(at::kLong));
  const RopeInput rope{rope_table_, positions.repeat({layout.batch})};
  at::Tensor x = embedding(input.ids_N, embedding_, anchor_, &gradient_ready_);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const BlockWeights& w = *blocks_[layer];
    const at::Tensor qkv = attention_input(x, w, rope);
    const at::Tensor context =
        cache != nullptr
            ? attention_cached(qkv, w.num_heads, w.num_kv_heads, layout, *cache, static_cast<int64_t>(layer))
            : attention(qkv, w.num_heads, w.num_kv_heads, layout);
    x = mlp(attention_output(context, x, w), w);
  }
  if (cache != nullptr) cache->length += layout.sequence;
  return rms_norm(x, final_norm_, &gradient_ready_);
}

at::Tensor Transformer::logits(const at::Tensor& hidden_ND) {
  return kernels::linear_forward_op(hidden_ND, head_.weight, {}).narrow(1, 0, config_.vocab_size);
}

at::Tensor Transformer::token_logprobs(const ModelInput& input, const at::Tensor& targets_N) {
  const at::Tensor hidden = hidden_states(input);
  const int64_t chunk = rows_per_logits_chunk(hidden.size(0), head_.weight.size(0), hidden.element_size());
  at::Tensor out = at::zeros({hidden.size(0)}, hidden.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, hidden.size(0) - begin);
    const at::Tensor rows = kernels::linear_forward_op(hidden.narrow(0, begin, count), head_.weight, {});
    out.narrow(0, begin, count)
        .copy_(kernels::token_logprobs_op(rows, targets_N.narrow(0, begin, count), config_.vocab_size));
  }
  return out;
}

LossResult Transformer::loss(const ModelInput& input, const at::Tensor& targets_N, double scale) {
  return linear_cross_entropy(hidden_states(input), targets_N, head_, config_.vocab_size, scale, &gradient_ready_);
}

}  // namespace hearth
