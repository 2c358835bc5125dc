// Shape and switches of a decoder-only transformer, with the names of HF config.json.
// Families are data: a family sets defaults for the switches (apply_family_defaults), nothing else depends on
// it.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

// RoPE frequency scaling. rope_type "default" leaves frequencies as they are; "llama3" is Llama-3.1's rule.
struct RopeScalingConfig {
  std::string rope_type = "default";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
  bool operator==(const RopeScalingConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("rope_type", rope_type, OnResume::Frozen, "default | llama3");
    v("factor", factor, OnResume::Frozen, "llama3: by how much low frequencies are slowed");
    v("low_freq_factor", low_freq_factor, OnResume::Frozen,
      "llama3: wavelengths above original/this are scaled");
    v("high_freq_factor", high_freq_factor, OnResume::Frozen,
      "llama3: wavelengths below original/this are kept");
    v("original_max_position_embeddings", original_max_position_embeddings, OnResume::Frozen,
      "llama3: context of the first training");
  }
};

struct ModelConfig {
  std::string family = "llama";  // llama, qwen2, qwen3, mistral, smollm
  int64_t vocab_size = 0;        // rows of the embedding that the tokenizer can reach
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // 0 = num_attention_heads
  int64_t head_dim = 0;             // 0 = hidden_size / num_attention_heads
  int64_t max_position_embeddings = 2048;
  double rope_theta = 10000.0;
  RopeScalingConfig rope_scaling;
  double rms_norm_eps = 1e-5;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // on q, k and v
  bool attention_output_bias = false;
  bool qk_norm = false;  // RMSNorm over head_dim of q and k, before RoPE
  bool operator==(const ModelConfig&) const = default;

  template <class V>
  void visit(V&& v) {
    v("family", family, OnResume::Frozen, "llama | qwen2 | qwen3 | mistral | smollm");
    v("vocab_size", vocab_size, OnResume::Frozen, "rows of the embedding; at least the tokenizer's size");
    v("hidden_size", hidden_size, OnResume::Frozen, "width of the residual stream");
    v("intermediate_size", intermediate_size, OnResume::Frozen, "width of the SwiGLU");
    v("num_hidden_layers", num_hidden_layers, OnResume::Frozen, "transformer blocks");
    v("num_attention_heads", num_attention_heads, OnResume::Frozen, "query heads");
    v("num_key_value_heads", num_key_value_heads, OnResume::Frozen,
      "key and value heads; 0 = num_attention_heads");
    v("head_dim", head_dim, OnResume::Frozen, "0 = hidden_size / num_attention_heads");
    v("max_position_embeddings", max_position_embeddings, OnResume::MayChange, "longest sequence, in tokens");
    v("rope_theta", rope_theta, OnResume::Frozen, "RoPE base");
    v("rope_scaling", rope_scaling, OnResume::Frozen, "RoPE frequency scaling");
    v("rms_norm_eps", rms_norm_eps, OnResume::Frozen, "under the root of every RMSNorm");
    v("initializer_range", initializer_range, OnResume::Frozen, "standard deviation of initial weights");
    v("tie_word_embeddings", tie_word_embeddings, OnResume::Frozen, "the head is the embedding");
    v("attention_bias", attention_bias, OnResume::Frozen, "bias on q, k and v");
    v("attention_output_bias", attention_output_bias, OnResume::Frozen,
      "bias on the attention output projection");
    v("qk_norm", qk_norm, OnResume::Frozen, "RMSNorm per head on q and k");
  }
  void validate(ConfigErrors& e) const;

  int64_t kv_heads() const { return num_key_value_heads > 0 ? num_key_value_heads : num_attention_heads; }
  int64_t head_width() const {
    return head_dim > 0 ? head_dim : (num_attention_heads > 0 ? hidden_size / num_attention_heads : 0);
  }
};

// Sets the switches that a family implies (qwen2: attention_bias, qwen3: qk_norm, ...). Called before
// explicit keys.
void apply_family_defaults(ModelConfig& config);

// What a parameter starts as.
enum class InitKind { Normal, Ones, Zeros, Uniform };

// One named parameter of the whole (unsharded) model, HF names ("model.layers.0.self_attn.q_proj.weight").
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  InitKind init = InitKind::Normal;
  double init_std = 0.0;  // for Normal; Uniform: values lie in [-init_std, init_std]
  bool operator==(const ParameterSpec&) const = default;
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    return n;
  }
};

// All parameters in forward order. A tied head has no entry of its own. q, k, v (and gate, up) of a layer are
// neighbours, so that a fused GEMM can see them as one matrix.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
int64_t parameter_count(const ModelConfig& config);

// Multiply-adds x 2 of one training token (forward + backward) at `seq_length`, by the two usual conventions:
// 6 x (parameters without the embedding table, head included) + attention, counted causal (half) or full.
struct ModelFlops {
  double per_token_causal = 0, per_token_full = 0;
};
ModelFlops model_flops(const ModelConfig& config, int64_t seq_length);

}  // namespace hearth
