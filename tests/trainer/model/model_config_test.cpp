// Published parameter counts and hand-counted operations, from shapes that are written out here.
#include "trainer/model/model_config.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <set>

using namespace hearth;

namespace {

enum class Head { Untied, Tied };

ModelConfig shape(const std::string& family, int64_t hidden, int64_t layers, int64_t heads, int64_t kv_heads,
                  int64_t head_dim, int64_t intermediate, int64_t vocab, Head head) {
  ModelConfig c;
  c.family = family;
  apply_family_defaults(c);
  c.hidden_size = hidden;
  c.num_hidden_layers = layers;
  c.num_attention_heads = heads;
  c.num_key_value_heads = kv_heads;
  c.head_dim = head_dim;
  c.intermediate_size = intermediate;
  c.vocab_size = vocab;
  c.tie_word_embeddings = head == Head::Tied;
  return c;
}

const ModelConfig kLlama2_7B = shape("llama", 4096, 32, 32, 32, 128, 11008, 32000, Head::Untied);
const ModelConfig kQwen25_05B = shape("qwen2", 896, 24, 14, 2, 64, 4864, 151936, Head::Tied);
const ModelConfig kQwen3_06B = shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, Head::Tied);
const ModelConfig kSmolLM2 = shape("smollm", 576, 30, 9, 3, 64, 1536, 49152, Head::Tied);

bool has(const std::vector<ParameterSpec>& specs, const std::string& name) {
  return std::any_of(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name == name; });
}

}  // namespace

BOOST_AUTO_TEST_CASE(parameter_counts_are_the_published_ones) {
  BOOST_TEST(parameter_count(kLlama2_7B) == 6'738'415'616);
  BOOST_TEST(parameter_count(shape("llama", 5120, 40, 40, 40, 128, 13824, 32000, Head::Untied)) ==
             13'015'864'320);
  BOOST_TEST(parameter_count(shape("llama", 8192, 80, 64, 8, 128, 28672, 32000, Head::Untied)) ==
             68'976'648'192);
  BOOST_TEST(parameter_count(shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, Head::Untied)) ==
             8'030'261'248);
  BOOST_TEST(parameter_count(kQwen25_05B) == 494'032'768);
  BOOST_TEST(parameter_count(shape("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, Head::Tied)) ==
             1'543'714'304);
  BOOST_TEST(parameter_count(shape("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, Head::Untied)) ==
             7'615'616'512);
  BOOST_TEST(parameter_count(kQwen3_06B) == 596'049'920);
  BOOST_TEST(parameter_count(shape("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, Head::Untied)) ==
             8'190'735'360);
  BOOST_TEST(parameter_count(kSmolLM2) == 134'515'008);
}

BOOST_AUTO_TEST_CASE(zero_means_derived) {
  ModelConfig c = kLlama2_7B;
  c.head_dim = 0;
  c.num_key_value_heads = 0;
  BOOST_TEST(c.head_width() == 128);
  BOOST_TEST(c.kv_heads() == 32);
  BOOST_TEST((parameter_specs(c) == parameter_specs(kLlama2_7B)));
}

BOOST_AUTO_TEST_CASE(families_set_their_switches) {
  const auto qwen2 = parameter_specs(kQwen25_05B), qwen3 = parameter_specs(kQwen3_06B),
             llama = parameter_specs(kLlama2_7B);
  const std::string attention = "model.layers.0.self_attn.";
  for (const char* part : {"q_proj.bias", "k_proj.bias", "v_proj.bias"}) {
    BOOST_TEST(has(qwen2, attention + part));
    BOOST_TEST(!has(qwen3, attention + part));
    BOOST_TEST(!has(llama, attention + part));
  }
  for (const char* part : {"q_norm.weight", "k_norm.weight"}) {
    BOOST_TEST(has(qwen3, attention + part));
    BOOST_TEST(!has(qwen2, attention + part));
  }
  BOOST_TEST(has(llama, "lm_head.weight"));
  BOOST_TEST(!has(qwen3, "lm_head.weight"));
  BOOST_TEST(!has(qwen2, attention + "o_proj.bias"));
}

BOOST_AUTO_TEST_CASE(names_are_unique_and_what_starts_as_what_is_right) {
  for (const auto& config : {kLlama2_7B, kQwen25_05B, kQwen3_06B, kSmolLM2}) {
    std::set<std::string> names;
    for (const auto& spec : parameter_specs(config)) {
      BOOST_TEST(names.insert(spec.name).second);
      const bool matrix = spec.shape.size() == 2;
      const InitKind want =
          matrix ? InitKind::Normal : (spec.name.ends_with(".bias") ? InitKind::Zeros : InitKind::Ones);
      BOOST_TEST((spec.init == want), spec.name);
      if (matrix) BOOST_TEST(spec.init_std == config.initializer_range);
    }
  }
}

// 6 x (parameters without the looked-up table), and 12 x layers x heads x head_dim x sequence for attention.
BOOST_AUTO_TEST_CASE(flops_of_a_token) {
  const ModelFlops llama = model_flops(kLlama2_7B, 4096);
  BOOST_TEST(llama.per_token_full == 6.0 * 6'607'343'616 + 6'442'450'944.0);
  BOOST_TEST(llama.per_token_causal == 6.0 * 6'607'343'616 + 3'221'225'472.0);
  const ModelFlops smollm = model_flops(kSmolLM2, 2048);  // tied: the table is the head and counts
  BOOST_TEST(smollm.per_token_full == 6.0 * 134'515'008 + 424'673'280.0);
  BOOST_TEST(smollm.per_token_causal == 6.0 * 134'515'008 + 212'336'640.0);
  const ModelFlops qwen3 = model_flops(kQwen3_06B, 1024);  // heads x head_dim = 2048, hidden 1024
  BOOST_TEST(qwen3.per_token_full == 6.0 * 596'049'920 + 704'643'072.0);
}

BOOST_AUTO_TEST_CASE(wrong_shapes_are_named) {
  const auto keys_of = [](const ModelConfig& config) {
    ConfigErrors errors;
    config.validate(errors);
    std::set<std::string> keys;
    for (const auto& entry : errors.entries()) keys.insert(entry.key);
    return keys;
  };
  BOOST_TEST(keys_of(kSmolLM2).empty());
  ModelConfig c = kSmolLM2;
  c.num_key_value_heads = 4;
  c.rope_theta = std::nan("");
  c.family = "smoll";
  BOOST_TEST((keys_of(c) == std::set<std::string>{"num_key_value_heads", "rope_theta", "family"}));
  c = kSmolLM2;
  c.head_dim = 63;
  BOOST_TEST((keys_of(c) == std::set<std::string>{"head_dim"}));
  c = kSmolLM2;
  c.rope_scaling.rope_type = "llama3";
  c.rope_scaling.high_freq_factor = 1.0;
  BOOST_TEST((keys_of(c) == std::set<std::string>{"rope_scaling.high_freq_factor"}));
}
