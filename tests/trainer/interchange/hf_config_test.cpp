#include "trainer/interchange/hf_config.h"

#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/model/model_config_json.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

json base(const std::string& architecture, const std::string& model_type) {
  return {{"architectures", {architecture}},
          {"model_type", model_type},
          {"vocab_size", 100},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 512}};
}
json llama() {
  return base("LlamaForCausalLM", "llama");
}
json qwen2() {
  return base("Qwen2ForCausalLM", "qwen2");
}
json qwen3() {
  return base("Qwen3ForCausalLM", "qwen3");
}
json mistral() {
  json config = base("MistralForCausalLM", "mistral");
  config["sliding_window"] = nullptr;
  return config;
}
HfConfig parse(const json& config) {
  return parse_hf_config(config.dump(), "config.json");
}
json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}
json without(json config, const std::string& key) {
  config.erase(key);
  return config;
}
void refuse(const json& config, const std::string& mention) {
  check_error(ErrorKind::BadInput, mention, [&] { parse(config); });
}
const json kLlama3Scaling = {{"factor", 8.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192},
                             {"rope_type", "llama3"}};

}  // namespace

BOOST_AUTO_TEST_CASE(defaults_of_each_architecture_where_keys_are_absent) {
  const ModelConfig l =
      parse(without(without(llama(), "num_key_value_heads"), "max_position_embeddings")).model;
  BOOST_TEST(l.family == "llama");
  BOOST_TEST(l.num_key_value_heads == 4);
  BOOST_TEST(l.max_position_embeddings == 2048);
  BOOST_TEST(l.rope_theta == 10000.0);
  BOOST_TEST(l.rms_norm_eps == 1e-6);
  BOOST_TEST(!l.attention_bias);
  BOOST_TEST(!l.attention_output_bias);
  BOOST_TEST(!l.tie_word_embeddings);
  BOOST_TEST(l.head_width() == 16);

  const ModelConfig q2 = parse(qwen2()).model;
  BOOST_TEST(q2.attention_bias);
  BOOST_TEST(!q2.attention_output_bias);
  BOOST_TEST(!q2.qk_norm);
  const ModelConfig q3 = parse(qwen3()).model;
  BOOST_TEST(q3.qk_norm);
  BOOST_TEST(!q3.attention_bias);
  BOOST_TEST(q3.head_width() == 128);
  // Explicit null is "as many as query heads"; absent is the class default, 8 for Mistral.
  BOOST_TEST(parse(with(mistral(), "num_key_value_heads", nullptr)).model.kv_heads() == 4);
  refuse(without(mistral(), "num_key_value_heads"), "num_key_value_heads");  // 8 does not divide 4 heads
  BOOST_TEST(parse(with(llama(), "attention_bias", true)).model.attention_output_bias);
  BOOST_TEST(parse(without(llama(), "architectures")).model.family == "llama");
}

BOOST_AUTO_TEST_CASE(key_forms_of_transformers_4_and_5_mean_the_same) {
  const json v4 =
      with(with(with(llama(), "rope_theta", 5e5), "rope_scaling", kLlama3Scaling), "torch_dtype", "bfloat16");
  json parameters = kLlama3Scaling;
  parameters["rope_theta"] = 5e5;
  const json v5 = with(with(llama(), "rope_parameters", parameters), "dtype", "bfloat16");
  const HfConfig a = parse(v4), b = parse(v5);
  BOOST_TEST((a.model == b.model));
  BOOST_TEST((a.dtype == DType::BF16));
  BOOST_TEST((b.dtype == DType::BF16));
  BOOST_TEST(a.model.rope_theta == 5e5);
  BOOST_TEST(a.model.rope_scaling.rope_type == "llama3");
  BOOST_TEST(a.model.rope_scaling.original_max_position_embeddings == 8192);
  json early = kLlama3Scaling;  // `type`, as transformers up to 4.42 wrote it
  early["type"] = early["rope_type"];
  early.erase("rope_type");
  BOOST_TEST((parse(with(with(llama(), "rope_theta", 5e5), "rope_scaling", early)).model == a.model));
}

BOOST_AUTO_TEST_CASE(contradictions_are_refused) {
  refuse(with(with(llama(), "rope_theta", 1e4), "rope_parameters",
              {{"rope_type", "default"}, {"rope_theta", 5e5}}),
         "rope_theta is 10000");
  refuse(with(with(llama(), "rope_scaling", kLlama3Scaling), "rope_parameters", {{"rope_type", "default"}}),
         "disagree");
  refuse(with(llama(), "model_type", "qwen2"), "LlamaForCausalLM");
  json both = kLlama3Scaling;
  both["type"] = "default";
  refuse(with(llama(), "rope_scaling", both), "disagree");
}

BOOST_AUTO_TEST_CASE(what_hearth_does_not_compute_is_refused_by_name) {
  refuse(base("MixtralForCausalLM", "mixtral"), "MixtralForCausalLM");
  refuse(base("SmolLM3ForCausalLM", "smollm3"), "SmolLM3ForCausalLM");
  refuse(with(llama(), "hidden_act", "gelu"), "gelu");
  refuse(with(llama(), "mlp_bias", true), "mlp_bias");
  refuse(with(llama(), "num_local_experts", 8), "num_local_experts");
  refuse(with(llama(), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}), "yarn");
  refuse(with(llama(), "rope_scaling", {{"type", "linear"}, {"factor", 4.0}}), "linear");
  refuse(with(llama(), "rope_scaling", {{"rope_type", "llama3"}, {"factor", 4.0}}),
         "low_freq_factor is missing");
  refuse(with(llama(), "partial_rotary_factor", 0.5), "partial_rotary_factor");
  refuse(with(llama(), "quantization_config", {{"bits", 4}}), "quantization_config");
  refuse(with(qwen2(), "attention_bias", false), "attention_bias");
  refuse(with(qwen3(), "layer_types", {"full_attention", "sliding_attention"}), "sliding_attention");
  refuse(with(llama(), "torch_dtype", "float8"), "float8");
}

BOOST_AUTO_TEST_CASE(a_sliding_window_is_refused_where_it_bites) {
  refuse(with(mistral(), "sliding_window", 256), "sliding_window = 256");
  BOOST_TEST(parse(with(mistral(), "sliding_window", 512)).model.family == "mistral");
  refuse(with(without(mistral(), "sliding_window"), "max_position_embeddings", 32768), "the default");
  refuse(with(with(qwen2(), "use_sliding_window", true), "sliding_window", 128), "sliding_window = 128");
  BOOST_TEST(parse(with(qwen2(), "sliding_window", 128)).model.family == "qwen2");  // not in use
}

BOOST_AUTO_TEST_CASE(malformed_files_name_the_key_and_value) {
  check_error(ErrorKind::BadInput, "config.json", [] { parse_hf_config("{", "config.json"); });
  check_error(ErrorKind::BadInput, "object", [] { parse_hf_config("[1]", "config.json"); });
  refuse(without(llama(), "hidden_size"), "hidden_size is missing");
  refuse(with(llama(), "hidden_size", "64"), "hidden_size must be an integer");
  refuse(with(llama(), "hidden_size", 64.5), "hidden_size must be an integer");
  refuse(with(llama(), "vocab_size", -1), "vocab_size");
  refuse(with(llama(), "vocab_size", int64_t{1} << 60), "vocab_size");
  refuse(with(llama(), "num_hidden_layers", int64_t{1} << 60), "num_hidden_layers");
  refuse(with(llama(), "vocab_size", 18446744073709551615u), "vocab_size must be an integer");
  refuse(with(llama(), "num_key_value_heads", 3), "num_key_value_heads");
  refuse(with(llama(), "eos_token_id", {1, -2}), "eos_token_id");
  refuse(with(llama(), "architectures", {"LlamaForCausalLM", "X"}), "architectures");
}

BOOST_AUTO_TEST_CASE(written_configs_read_back_equal_and_hold_both_forms) {
  json l3 =
      with(with(with(llama(), "rope_theta", 5e5), "rope_scaling", kLlama3Scaling), "attention_bias", true);
  json q3 = with(with(qwen3(), "head_dim", 24), "tie_word_embeddings", true);
  for (const json& source : {llama(), l3, qwen2(), q3, with(mistral(), "head_dim", 32)}) {
    const HfConfig first = parse(source);
    SpecialTokenIds ids{{7, 3}, 1, std::nullopt};
    const std::string text = hf_config_text(first.model, ids, DType::BF16);
    HfConfig again = parse_hf_config(text, "written");
    ModelConfig want = first.model;
    want.head_dim = want.head_width();
    BOOST_TEST((again.model == want), text);
    BOOST_TEST((again.ids == ids));
    const json written = json::parse(text);
    BOOST_TEST(written["rope_theta"] == written["rope_parameters"]["rope_theta"]);
    BOOST_TEST(written["dtype"] == "bfloat16");
    BOOST_TEST(written["torch_dtype"] == "bfloat16");
    BOOST_TEST(written["rope_scaling"].is_null() == (first.model.rope_scaling.rope_type == "default"));
  }
}

BOOST_AUTO_TEST_CASE(models_without_an_hf_architecture_are_not_exported) {
  ModelConfig model = parse(llama()).model;
  model.qk_norm = true;
  check_error(ErrorKind::Config, "qk_norm", [&] { hf_config_text(model, {}, DType::F32); });
  model = parse(qwen2()).model;
  model.attention_bias = false;
  check_error(ErrorKind::Config, "attention_bias", [&] { hf_config_text(model, {}, DType::F32); });
  model = parse(llama()).model;
  model.attention_bias = true;  // without the output bias: transformers has one switch for both
  check_error(ErrorKind::Config, "attention_output_bias", [&] { hf_config_text(model, {}, DType::F32); });
}

BOOST_AUTO_TEST_CASE(generation_config_keeps_other_keys_and_lists) {
  const std::string source = R"({"temperature": 0.7, "eos_token_id": 2, "bos_token_id": 1})";
  const json out = json::parse(generation_config_text(source, {{5, 2}, std::nullopt, 9}));
  BOOST_TEST(out["temperature"] == 0.7);
  BOOST_TEST(out["eos_token_id"] == json({5, 2}));
  BOOST_TEST(!out.contains("bos_token_id"));
  BOOST_TEST(out["pad_token_id"] == 9);
  BOOST_TEST((parse_generation_ids(out.dump(), "g") == SpecialTokenIds{{5, 2}, std::nullopt, 9}));
}

BOOST_AUTO_TEST_CASE(model_config_json_round_trip_and_strictness) {
  ModelConfig model = parse(with(with(llama(), "rope_theta", 5e5), "rope_scaling", kLlama3Scaling)).model;
  const json text = model_config_to_json(model);
  BOOST_TEST((model_config_from_json(json::parse(text.dump()), "state.json") == model));
  json unknown = text;
  unknown["hiden_size"] = 1;
  check_error(ErrorKind::BadInput, "hiden_size", [&] { model_config_from_json(unknown, "state.json"); });
  json wrong = text;
  wrong["rope_scaling"]["factor"] = "8";
  check_error(ErrorKind::BadInput, "rope_scaling.factor",
              [&] { model_config_from_json(wrong, "state.json"); });
  json bad = text;
  bad["hidden_size"] = 0;
  check_error(ErrorKind::BadInput, "hidden_size", [&] { model_config_from_json(bad, "state.json"); });
}
