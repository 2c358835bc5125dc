#include "trainer/interchange/hf_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "trainer/model/model_config_json.h"

namespace hearth {
namespace {

using nlohmann::json;

// One architecture of transformers: what Hearth calls it and what its configuration class does where a key is
// absent (transformers 5.23, models/<family>/configuration_<family>.py).
struct Architecture {
  std::string_view name, model_type, family;
  int64_t head_dim;  // 0 = hidden_size / num_attention_heads
  int64_t kv_heads;  // 0 = num_attention_heads
  int64_t max_position_embeddings;
  bool reads_head_dim, reads_attention_bias, attention_bias, qk_norm;
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", "llama", 0, 0, 2048, true, true, false, false},
    {"Qwen2ForCausalLM", "qwen2", "qwen2", 0, 32, 32768, true, false, true, false},
    {"Qwen3ForCausalLM", "qwen3", "qwen3", 128, 32, 32768, true, true, false, true},
    {"MistralForCausalLM", "mistral", "mistral", 0, 8, 131072, true, false, false, false},
};

// One object of a config file, with messages that name file and key.
class Section {
 public:
  Section(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {
    HEARTH_CHECK(object.is_object(), BadInput, "{}: must be a JSON object", origin_);
  }
  const std::string& origin() const { return origin_; }
  const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has_key(const char* key) const { return object_.contains(key); }  // also where it is null
  int64_t integer(const char* key, std::optional<int64_t> fallback = std::nullopt) const {
    const json* value = find(key);
    HEARTH_CHECK(value || fallback, BadInput, "{}: {} is missing", origin_, key);
    return value ? to_integer(*value, key) : *fallback;
  }
  double number(const char* key, double fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    HEARTH_CHECK(value->is_number(), BadInput, "{}: {} must be a number, got {}", origin_, key,
                 shown(*value));
    return value->get<double>();
  }
  bool flag(const char* key, bool fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    HEARTH_CHECK(value->is_boolean(), BadInput, "{}: {} must be true or false, got {}", origin_, key,
                 shown(*value));
    return value->get<bool>();
  }
  std::string text(const char* key, const std::string& fallback) const {
    const json* value = find(key);
    if (!value) return fallback;
    HEARTH_CHECK(value->is_string(), BadInput, "{}: {} must be a string, got {}", origin_, key,
                 shown(*value));
    return value->get<std::string>();
  }
  int64_t to_integer(const json& value, const char* key) const {
    HEARTH_CHECK(value.is_number_integer() &&
                     !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}),
                 BadInput, "{}: {} must be an integer, got {}", origin_, key, shown(value));
    return value.get<int64_t>();
  }
  // Ids: one integer, a list of integers, or null.
  std::vector<int64_t> ids(const char* key) const {
    std::vector<int64_t> out;
    const json* value = find(key);
    if (!value) return out;
    for (const json& entry : value->is_array() ? *value : json::array({*value})) {
      out.push_back(to_integer(entry, key));
      HEARTH_CHECK(out.back() >= 0, BadInput, "{}: {} must not be negative, got {}", origin_, key,
                   out.back());
    }
    return out;
  }
  std::optional<int64_t> id(const char* key) const {
    const std::vector<int64_t> all = ids(key);
    HEARTH_CHECK(all.size() <= 1, BadInput, "{}: {} must be one id", origin_, key);
    return all.empty() ? std::nullopt : std::optional(all[0]);
  }
  static std::string shown(const json& value) { return value.dump().substr(0, 80); }

 private:
  const json& object_;
  std::string origin_;
};

const Architecture& find_architecture(const Section& config) {
  const std::string model_type = config.text("model_type", "");
  const json* list = config.find("architectures");
  std::string name;
  if (list) {
    HEARTH_CHECK(list->is_array() && list->size() == 1 && (*list)[0].is_string(), BadInput,
                 "{}: architectures must be a list of one name, got {}", config.origin(),
                 Section::shown(*list));
    name = (*list)[0].get<std::string>();
  }
  for (const auto& architecture : kArchitectures) {
    const bool type_fits = model_type.empty() || model_type == architecture.model_type;
    const bool name_fits = name.empty() ? !model_type.empty() : name == architecture.name;
    if (type_fits && name_fits) return architecture;
  }
  fail(ErrorKind::BadInput,
       "{}: architecture '{}' with model_type '{}' is not one Hearth knows; it reads LlamaForCausalLM "
       "(llama, smollm), "
       "Qwen2ForCausalLM, Qwen3ForCausalLM and MistralForCausalLM with their own model_type",
       config.origin(), name, model_type);
}

// Keys that switch on something Hearth does not compute: the only value that may stand there (absent and null
// are fine).
void refuse_unsupported(const Section& config) {
  const auto flag_off = [&](const char* key) {
    HEARTH_CHECK(!config.flag(key, false), BadInput, "{}: {} = true is not supported", config.origin(), key);
  };
  flag_off("mlp_bias");
  flag_off("use_bias");
  flag_off("rope_interleaved");
  flag_off("use_qkv_bias");
  flag_off("is_encoder_decoder");
  flag_off("add_cross_attention");
  const std::string act = config.text("hidden_act", "silu");
  HEARTH_CHECK(act == "silu" || act == "swish", BadInput, "{}: hidden_act '{}' is not supported, only silu",
               config.origin(), act);
  for (const char* key :
       {"num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "no_rope_layers",
        "no_rope_layer_interval", "kv_lora_rank", "q_lora_rank", "attn_logit_softcapping",
        "final_logit_softcapping", "logit_scale", "embedding_multiplier", "residual_multiplier"})
    HEARTH_CHECK(!config.find(key), BadInput, "{}: {} = {} belongs to a model that Hearth does not compute",
                 config.origin(), key, Section::shown(*config.find(key)));
  HEARTH_CHECK(!config.find("quantization_config"), BadInput,
               "{}: the weights are quantised (quantization_config); import the unquantised model",
               config.origin());
  HEARTH_CHECK(config.number("partial_rotary_factor", 1.0) == 1.0, BadInput,
               "{}: partial_rotary_factor = {} is not supported, only 1", config.origin(),
               config.number("partial_rotary_factor", 1.0));
  if (const json* types = config.find("layer_types"))
    for (const json& type : *types)
      HEARTH_CHECK(type == "full_attention", BadInput,
                   "{}: layer_types holds {}, Hearth computes full_attention only", config.origin(),
                   Section::shown(type));
}

// A window that is never shorter than the longest sequence changes nothing and is accepted.
void refuse_sliding_window(const Section& config, const Architecture& architecture, int64_t positions) {
  const bool qwen = architecture.family == "qwen2" || architecture.family == "qwen3";
  if (architecture.family == "llama" && !config.find("sliding_window")) return;
  if (qwen && !config.flag("use_sliding_window", false)) return;
  if (config.has_key("sliding_window") && !config.find("sliding_window")) return;
  const int64_t window = config.integer("sliding_window", 4096);  // the default of transformers
  HEARTH_CHECK(
      window >= positions, BadInput,
      "{}: sliding_window = {} is in use{}, but max_position_embeddings is {}; Hearth computes full "
      "attention. To "
      "work with sequences of at most {} tokens, where both are the same, set max_position_embeddings to {}",
      config.origin(), window,
      config.has_key("sliding_window") ? "" : " (the default where the key is absent)", positions, window,
      window);
}

double merged_theta(const Section& config, const Section* rope, double fallback) {
  const bool top = config.find("rope_theta"), inner = rope && rope->find("rope_theta");
  const double outer_value = config.number("rope_theta", fallback);
  const double inner_value = rope ? rope->number("rope_theta", outer_value) : outer_value;
  // Readers differ in which one they take, so that two values would be two models.
  HEARTH_CHECK(!(top && inner) || outer_value == inner_value, BadInput,
               "{}: rope_theta is {} at the top and {} in {}; they must agree", config.origin(), outer_value,
               inner_value, rope ? rope->origin() : "");
  return inner ? inner_value : outer_value;
}

RopeScalingConfig parse_rope_scaling(const Section& rope) {
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  HEARTH_CHECK(rope.text("type", type) == type, BadInput, "{}: rope_type '{}' and type '{}' disagree",
               rope.origin(), type, rope.text("type", type));
  HEARTH_CHECK(type == "default" || type == "llama3", BadInput,
               "{}: rope_type '{}' is not supported, only default and llama3", rope.origin(), type);
  HEARTH_CHECK(rope.number("partial_rotary_factor", 1.0) == 1.0, BadInput,
               "{}: partial_rotary_factor other than 1 is not supported", rope.origin());
  RopeScalingConfig scaling;
  scaling.rope_type = type;
  if (type == "default") return scaling;
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    HEARTH_CHECK(rope.find(key), BadInput, "{}: {} is missing for rope_type llama3", rope.origin(), key);
  scaling.factor = rope.number("factor", 0);
  scaling.low_freq_factor = rope.number("low_freq_factor", 0);
  scaling.high_freq_factor = rope.number("high_freq_factor", 0);
  scaling.original_max_position_embeddings = rope.integer("original_max_position_embeddings");
  return scaling;
}

void parse_rope(const Section& config, ModelConfig& model) {
  std::vector<Section> sections;
  for (const char* key : {"rope_parameters", "rope_scaling"})
    if (const json* value = config.find(key)) sections.emplace_back(*value, config.origin() + ": " + key);
  if (sections.empty()) {
    model.rope_theta = merged_theta(config, nullptr, 10000.0);
    return;
  }
  model.rope_theta = merged_theta(config, &sections[0], 10000.0);
  model.rope_scaling = parse_rope_scaling(sections[0]);
  HEARTH_CHECK(
      sections.size() == 1 || (parse_rope_scaling(sections[1]) == model.rope_scaling &&
                               sections[1].number("rope_theta", model.rope_theta) == model.rope_theta),
      BadInput, "{}: rope_parameters and rope_scaling disagree", config.origin());
}

ModelConfig parse_model(const Section& config, const Architecture& architecture) {
  ModelConfig model;
  model.family = architecture.family;
  model.vocab_size = config.integer("vocab_size");
  model.hidden_size = config.integer("hidden_size");
  model.intermediate_size = config.integer("intermediate_size");
  model.num_hidden_layers = config.integer("num_hidden_layers");
  model.num_attention_heads = config.integer("num_attention_heads");
  // An explicit null means num_attention_heads in every architecture; an absent key means the class default.
  model.num_key_value_heads = config.integer(
      "num_key_value_heads", config.has_key("num_key_value_heads") ? 0 : architecture.kv_heads);
  if (model.num_key_value_heads == 0) model.num_key_value_heads = model.num_attention_heads;
  model.head_dim = config.integer("head_dim", architecture.head_dim);
  model.max_position_embeddings =
      config.integer("max_position_embeddings", architecture.max_position_embeddings);
  model.rms_norm_eps = config.number("rms_norm_eps", 1e-6);
  model.initializer_range = config.number("initializer_range", 0.02);
  model.tie_word_embeddings = config.flag("tie_word_embeddings", false);
  model.attention_bias = architecture.attention_bias;
  if (architecture.reads_attention_bias) {
    // transformers puts the bias on the output projection too for these architectures.
    model.attention_bias = model.attention_output_bias = config.flag("attention_bias", false);
  } else {
    HEARTH_CHECK(config.flag("attention_bias", architecture.attention_bias) == architecture.attention_bias,
                 BadInput, "{}: attention_bias = {} is not what {} computes", config.origin(),
                 !architecture.attention_bias, architecture.name);
  }
  model.qk_norm = architecture.qk_norm;
  parse_rope(config, model);
  require_valid(model, config.origin());
  return model;
}

json one_or_list(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? json(ids[0]) : json(ids);
}
json id_or_null(const std::optional<int64_t>& id) {
  return id ? json(*id) : json(nullptr);
}

const Architecture& architecture_of(const ModelConfig& model) {
  const std::string_view family = model.family == "smollm" ? "llama" : std::string_view(model.family);
  for (const auto& architecture : kArchitectures)
    if (architecture.family == family) return architecture;
  fail(ErrorKind::Config, "family '{}' has no HF architecture", model.family);
}

// What config.json cannot say must be what the architecture implies, or transformers would compute another
// model.
void require_expressible(const ModelConfig& model, const Architecture& architecture) {
  const auto require = [&](bool holds, std::string_view what) {
    HEARTH_CHECK(holds, Config, "cannot write config.json: {} ({}) cannot have {}", architecture.name,
                 model.family, what);
  };
  require(model.qk_norm == architecture.qk_norm, model.qk_norm ? "qk_norm" : "no qk_norm");
  if (architecture.reads_attention_bias) {
    require(model.attention_bias == model.attention_output_bias,
            "attention_bias and attention_output_bias that differ (transformers has one switch for both)");
  } else {
    require(model.attention_bias == architecture.attention_bias,
            model.attention_bias ? "attention_bias" : "attention_bias = false");
    require(!model.attention_output_bias, "attention_output_bias");
  }
  require(architecture.family != "llama" || model.hidden_size % model.num_attention_heads == 0,
          "a hidden_size that num_attention_heads does not divide");
}

}  // namespace

std::string_view hf_architecture(std::string_view family) {
  ModelConfig model;
  model.family = family;
  return architecture_of(model).name;
}

HfConfig parse_hf_config(std::string_view text, std::string_view origin) {
  const json parsed = parse_json_strict(text, origin);
  const Section config(parsed, std::string(origin));
  HfConfig out;
  const Architecture& architecture = find_architecture(config);
  refuse_unsupported(config);
  out.model = parse_model(config, architecture);
  refuse_sliding_window(config, architecture, out.model.max_position_embeddings);
  out.ids = {config.ids("eos_token_id"), config.id("bos_token_id"), config.id("pad_token_id")};
  for (const char* key : {"dtype", "torch_dtype"}) {
    const std::string name = config.text(key, "");
    if (name.empty() || out.dtype) continue;
    out.dtype = dtype_from_config(name);
    HEARTH_CHECK(out.dtype, BadInput, "{}: {} '{}' is not one Hearth reads (float32, bfloat16, float16)",
                 origin, key, name);
  }
  return out;
}

SpecialTokenIds parse_generation_ids(std::string_view text, std::string_view origin) {
  const json parsed = parse_json_strict(text, origin);
  const Section config(parsed, std::string(origin));
  return {config.ids("eos_token_id"), config.id("bos_token_id"), config.id("pad_token_id")};
}

std::string hf_config_text(const ModelConfig& model, const SpecialTokenIds& ids, DType dtype) {
  const Architecture& architecture = architecture_of(model);
  require_valid(model, "export");
  require_expressible(model, architecture);
  const bool qwen = architecture.family == "qwen2" || architecture.family == "qwen3";
  nlohmann::ordered_json out;
  out["architectures"] = json::array({architecture.name});
  out["model_type"] = architecture.model_type;
  if (architecture.reads_attention_bias) out["attention_bias"] = model.attention_bias;
  out["attention_dropout"] = 0.0;
  out["bos_token_id"] = id_or_null(ids.bos);
  out["eos_token_id"] = one_or_list(ids.eos);
  out["pad_token_id"] = id_or_null(ids.pad);
  out["dtype"] = out["torch_dtype"] = torch_name(dtype);
  // Qwen2's class has no head_dim; its attention takes one from the config all the same.
  out["head_dim"] = model.head_width();
  out["hidden_act"] = "silu";
  out["hidden_size"] = model.hidden_size;
  out["initializer_range"] = model.initializer_range;
  out["intermediate_size"] = model.intermediate_size;
  out["max_position_embeddings"] = model.max_position_embeddings;
  if (architecture.family == "llama") out["mlp_bias"] = false;
  out["num_attention_heads"] = model.num_attention_heads;
  out["num_hidden_layers"] = model.num_hidden_layers;
  out["num_key_value_heads"] = model.kv_heads();
  out["rms_norm_eps"] = model.rms_norm_eps;
  nlohmann::ordered_json rope;
  const RopeScalingConfig& scaling = model.rope_scaling;
  rope["rope_type"] = scaling.rope_type;
  if (scaling.rope_type == "llama3") {
    rope["factor"] = scaling.factor;
    rope["low_freq_factor"] = scaling.low_freq_factor;
    rope["high_freq_factor"] = scaling.high_freq_factor;
    rope["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
  }
  out["rope_scaling"] = scaling.rope_type == "default" ? nlohmann::ordered_json(nullptr) : rope;
  rope["rope_theta"] = model.rope_theta;
  out["rope_theta"] = model.rope_theta;
  out["rope_parameters"] = rope;
  if (architecture.family != "llama") out["sliding_window"] = nullptr;
  if (qwen) {
    out["use_sliding_window"] = false;
    out["max_window_layers"] = model.num_hidden_layers;  // older readers demand it; unused without a window
  }
  out["tie_word_embeddings"] = model.tie_word_embeddings;
  out["use_cache"] = true;
  out["vocab_size"] = model.vocab_size;
  return out.dump(2) + "\n";
}

std::string generation_config_text(std::string_view source, const SpecialTokenIds& ids) {
  json out = source.empty() ? json::object() : parse_json_strict(source, "generation_config.json");
  HEARTH_CHECK(out.is_object(), BadInput, "generation_config.json: must be a JSON object");
  const auto set = [&](const char* key, const json& value) {
    if (value.is_null())
      out.erase(key);
    else
      out[key] = value;
  };
  set("eos_token_id", one_or_list(ids.eos));
  set("bos_token_id", id_or_null(ids.bos));
  set("pad_token_id", id_or_null(ids.pad));
  return out.dump(2) + "\n";
}

}  // namespace hearth
