#include "trainer/model/model_config.h"

#include <fmt/core.h>

namespace hearth {

void ModelConfig::validate(ConfigErrors& e) const {
  e.one_of(family, "family", {"llama", "qwen2", "qwen3", "mistral", "smollm"});
  const auto positive = [&](int64_t value, std::string_view key) {
    e.require(value > 0, key, "must be > 0, got {}", value);
  };
  positive(vocab_size, "vocab_size");
  positive(hidden_size, "hidden_size");
  positive(intermediate_size, "intermediate_size");
  positive(num_hidden_layers, "num_hidden_layers");
  positive(num_attention_heads, "num_attention_heads");
  positive(max_position_embeddings, "max_position_embeddings");
  e.require(num_key_value_heads >= 0, "num_key_value_heads", "must be >= 0, got {}", num_key_value_heads);
  e.require(head_dim >= 0, "head_dim", "must be >= 0, got {}", head_dim);
  if (num_attention_heads > 0) {
    e.require(num_key_value_heads <= 0 || num_attention_heads % num_key_value_heads == 0,
              "num_key_value_heads", "must divide num_attention_heads = {}, got {}", num_attention_heads,
              num_key_value_heads);
    e.require(head_dim > 0 || hidden_size % num_attention_heads == 0, "head_dim",
              "is needed where num_attention_heads = {} does not divide hidden_size = {}",
              num_attention_heads, hidden_size);
    e.require(head_width() % 2 == 0, "head_dim", "must be even for RoPE, got {}", head_width());
  }
  e.require(std::isfinite(rope_theta) && rope_theta > 0, "rope_theta", "must be finite and > 0, got {}",
            rope_theta);
  e.require(std::isfinite(rms_norm_eps) && rms_norm_eps > 0, "rms_norm_eps", "must be finite and > 0, got {}",
            rms_norm_eps);
  e.require(std::isfinite(initializer_range) && initializer_range > 0, "initializer_range",
            "must be finite and > 0, got {}", initializer_range);
  const ConfigErrors::Scope scope(e, "rope_scaling");
  e.one_of(rope_scaling.rope_type, "rope_type", {"default", "llama3"});
  if (rope_scaling.rope_type == "llama3") {
    const auto& r = rope_scaling;
    e.require(std::isfinite(r.factor) && r.factor >= 1, "factor", "must be >= 1, got {}", r.factor);
    e.require(std::isfinite(r.low_freq_factor) && r.low_freq_factor > 0, "low_freq_factor",
              "must be > 0, got {}", r.low_freq_factor);
    e.require(std::isfinite(r.high_freq_factor) && r.high_freq_factor > r.low_freq_factor, "high_freq_factor",
              "must be > low_freq_factor = {}, got {}", r.low_freq_factor, r.high_freq_factor);
    e.require(r.original_max_position_embeddings > 0, "original_max_position_embeddings",
              "must be > 0, got {}", r.original_max_position_embeddings);
  }
}

void apply_family_defaults(ModelConfig& config) {
  if (config.family == "qwen2") config.attention_bias = true;
  if (config.family == "qwen3") config.qk_norm = true;
  if (config.family == "qwen2" || config.family == "qwen3") config.rms_norm_eps = 1e-6;
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& c) {
  const int64_t q_rows = c.num_attention_heads * c.head_width(), kv_rows = c.kv_heads() * c.head_width();
  std::vector<ParameterSpec> specs;
  const auto matrix = [&](std::string name, int64_t rows, int64_t cols) {
    specs.push_back({std::move(name), {rows, cols}, InitKind::Normal, c.initializer_range});
  };
  const auto norm = [&](std::string name, int64_t width) {
    specs.push_back({std::move(name), {width}, InitKind::Ones});
  };
  const auto bias = [&](std::string name, int64_t width) {
    specs.push_back({std::move(name), {width}, InitKind::Zeros});
  };
  matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    const std::string p = fmt::format("model.layers.{}.", layer);
    norm(p + "input_layernorm.weight", c.hidden_size);
    matrix(p + "self_attn.q_proj.weight", q_rows, c.hidden_size);
    matrix(p + "self_attn.k_proj.weight", kv_rows, c.hidden_size);
    matrix(p + "self_attn.v_proj.weight", kv_rows, c.hidden_size);
    if (c.attention_bias) {
      bias(p + "self_attn.q_proj.bias", q_rows);
      bias(p + "self_attn.k_proj.bias", kv_rows);
      bias(p + "self_attn.v_proj.bias", kv_rows);
    }
    if (c.qk_norm) {
      norm(p + "self_attn.q_norm.weight", c.head_width());
      norm(p + "self_attn.k_norm.weight", c.head_width());
    }
    matrix(p + "self_attn.o_proj.weight", c.hidden_size, q_rows);
    if (c.attention_output_bias) bias(p + "self_attn.o_proj.bias", c.hidden_size);
    norm(p + "post_attention_layernorm.weight", c.hidden_size);
    matrix(p + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size);
    matrix(p + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size);
    matrix(p + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size);
  }
  norm("model.norm.weight", c.hidden_size);
  if (!c.tie_word_embeddings) matrix("lm_head.weight", c.vocab_size, c.hidden_size);
  return specs;
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const auto& spec : parameter_specs(config)) count += spec.numel();
  return count;
}

ModelFlops model_flops(const ModelConfig& c, int64_t seq_length) {
  const double embedding = static_cast<double>(c.vocab_size) * static_cast<double>(c.hidden_size);
  const double parameters = static_cast<double>(parameter_count(c));
  // A tied table is used once as a matrix (the head); an untied one adds a table that is only looked up.
  const double dense = 6.0 * (c.tie_word_embeddings ? parameters : parameters - embedding);
  // QK^T and PV: 2 x 2 x S x heads x head_dim per token forward, three times that with the backward.
  const double attention = 12.0 * static_cast<double>(c.num_hidden_layers) *
                           static_cast<double>(c.num_attention_heads * c.head_width()) *
                           static_cast<double>(seq_length);
  return {.per_token_causal = dense + attention / 2, .per_token_full = dense + attention};
}

}  // namespace hearth
