#include "trainer/interchange/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "base/error.h"
#include "trainer/model/model_config_json.h"

namespace hearth {
namespace {

constexpr const char* kRopeFactors = "rope_freqs.weight";

std::string known_architecture(const GgufFile& file) {
  const std::string name = file.text("general.architecture");
  HEARTH_CHECK(name == "llama" || name == "qwen2" || name == "qwen3", BadInput,
               "{}: architecture '{}' is not one Hearth knows (llama, qwen2, qwen3)", file.path(), name);
  return name;
}

void refuse_unsupported(const GgufFile& file, const std::string& arch, int64_t context) {
  for (const char* key : {".expert_count", ".expert_used_count"})
    HEARTH_CHECK(file.integer_or(arch + key, 0) == 0, BadInput,
                 "{}: {}{} = {}: mixtures of experts are not supported", file.path(), arch, key,
                 file.integer_or(arch + key, 0));
  const int64_t window = file.integer_or(arch + ".attention.sliding_window", 0);
  HEARTH_CHECK(
      window == 0 || window >= context, BadInput,
      "{}: {}.attention.sliding_window = {} is below the context length {}; Hearth computes full attention",
      file.path(), arch, window, context);
  const std::string scaling = file.text_or(arch + ".rope.scaling.type", "none");
  const double factor = file.number_or(arch + ".rope.scaling.factor", 1.0);
  HEARTH_CHECK(scaling == "none" || (scaling == "linear" && factor == 1.0), BadInput,
               "{}: {}.rope.scaling.type = '{}' with factor {} is not supported", file.path(), arch, scaling,
               factor);
}

// The divisors that llama3 parameters give (Llama 3.1's rule): 1 for short wavelengths, `factor` for long
// ones, and a blend of the two frequencies in between.
std::vector<double> llama3_divisors(const ModelConfig& config, const RopeScalingConfig& s) {
  const int64_t pairs = config.head_width() / 2;
  std::vector<double> out;
  for (int64_t i = 0; i < pairs; ++i) {
    const double frequency =
        std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(pairs));
    const double turns =
        static_cast<double>(s.original_max_position_embeddings) * frequency / (2 * std::numbers::pi);
    const double blend =
        std::clamp((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
    out.push_back(1.0 / ((1 - blend) / s.factor + blend));
  }
  return out;
}

// The converters compute the divisors in fp32: errors of a few 1e-6 in the blend, times up to `factor`.
bool agree(const std::vector<double>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - static_cast<double>(b[i])) <= 1e-4 * std::abs(a[i]))) return false;
  return true;
}

// The file holds only the divisors. Every published llama3 scaling has low 1, high 4 and a power of two as
// the context of the first training, and `factor` is the largest divisor; whichever candidate gives these
// divisors computes the same model.
RopeScalingConfig scaling_from_divisors(const GgufFile& file, const ModelConfig& config) {
  const GgufTensor* tensor = file.find(kRopeFactors);
  if (!tensor) return {};
  HEARTH_CHECK(tensor->numel() == config.head_width() / 2, BadInput,
               "{}: {} has {} values, expected head_dim / 2 = {}", file.path(), kRopeFactors, tensor->numel(),
               config.head_width() / 2);
  std::vector<float> divisors(static_cast<size_t>(tensor->numel()));
  file.read(*tensor, 0, tensor->numel(), divisors.data());
  const float largest = *std::max_element(divisors.begin(), divisors.end());
  if (std::all_of(divisors.begin(), divisors.end(), [](float d) { return d == 1.0f; })) return {};
  RopeScalingConfig scaling{.rope_type = "llama3",
                            .factor = static_cast<double>(largest),
                            .low_freq_factor = 1.0,
                            .high_freq_factor = 4.0,
                            .original_max_position_embeddings = 8192};
  if (scaling.factor > 1 && std::isfinite(scaling.factor)) {
    if (agree(llama3_divisors(config, scaling), divisors)) return scaling;
    for (int64_t context = 16; context <= (int64_t{1} << 24); context *= 2) {
      scaling.original_max_position_embeddings = context;
      if (agree(llama3_divisors(config, scaling), divisors)) return scaling;
    }
  }
  fail(ErrorKind::BadInput,
       "{}: {} (largest divisor {}) is not what any llama3 scaling with low_freq_factor 1 and "
       "high_freq_factor 4 gives; "
       "Hearth cannot express it",
       file.path(), kRopeFactors, largest);
}

// GGUF name -> HF name; empty for one this table does not have.
std::string hf_name(const std::string& name) {
  static const std::map<std::string, std::string> kTop = {{"token_embd.weight", "model.embed_tokens.weight"},
                                                          {"output_norm.weight", "model.norm.weight"},
                                                          {"output.weight", "lm_head.weight"}};
  static const std::map<std::string, std::string> kBlock = {
      {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
      {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
      {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
      {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
      {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"}};
  if (const auto top = kTop.find(name); top != kTop.end()) return top->second;
  if (!name.starts_with("blk.")) return "";
  const size_t number_end = name.find('.', 4), part_end = name.rfind('.');
  if (number_end == std::string::npos || part_end <= number_end) return "";
  const auto part = kBlock.find(name.substr(number_end + 1, part_end - number_end - 1));
  if (part == kBlock.end()) return "";
  return "model.layers." + name.substr(4, number_end - 4) + "." + part->second + name.substr(part_end);
}

class GgufWeights final : public TensorSource {
 public:
  GgufWeights(std::shared_ptr<const GgufFile> file, const ModelConfig& config)
      : file_(std::move(file)), head_dim_(config.head_width()) {
    const bool permuted = known_architecture(*file_) == "llama";
    for (const GgufTensor& tensor : file_->tensors()) {
      if (tensor.name == kRopeFactors) continue;  // part of the configuration
      const std::string known = hf_name(tensor.name);
      const std::string name = known.empty() ? tensor.name : known;
      const bool q_or_k = name.find(".self_attn.q_proj.") != std::string::npos ||
                          name.find(".self_attn.k_proj.") != std::string::npos;
      const auto [at, fresh] = places_.emplace(name, Place{&tensor, permuted && q_or_k, infos_.size()});
      HEARTH_CHECK(fresh, BadInput, "{}: two tensors are {}", file_->path(), name);
      infos_.push_back({name, DType::F32, tensor.shape});
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return places_.contains(name); }
  const TensorInfo& info(const std::string& name) const override { return infos_[place(name).index]; }
  std::string describe() const override { return file_->path() + " (GGUF)"; }

  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    const Place& at = place(name);
    auto* to = static_cast<char*>(out);
    // Pieces keep the fp32 copy small when another type is asked for.
    std::vector<float> values;
    for (int64_t first = begin; first < end; first += kPiece) {
      const int64_t last = std::min(end, first + kPiece);
      values.resize(static_cast<size_t>(last - first));
      if (at.permuted)
        read_permuted(*at.tensor, first, last, values.data());
      else
        file_->read(*at.tensor, first, last, values.data());
      convert(DType::F32, values.data(), dtype, to, last - first);
      to += (last - first) * size_bytes(dtype);
    }
  }

 private:
  static constexpr int64_t kPiece = int64_t{1} << 21;
  struct Place {
    const GgufTensor* tensor;
    bool permuted;
    size_t index;
  };
  const Place& place(const std::string& name) const {
    const auto found = places_.find(name);
    HEARTH_CHECK(found != places_.end(), BadInput, "{}: has no tensor {}", describe(), name);
    return found->second;
  }
  // Elements in HF's row order, a row (or the asked part of one) at a time; a bias has rows of one element.
  void read_permuted(const GgufTensor& tensor, int64_t begin, int64_t end, float* out) const {
    const int64_t width = tensor.numel() / tensor.shape[0], half = head_dim_ / 2;
    while (begin < end) {
      const int64_t row = begin / width, column = begin % width, take = std::min(width - column, end - begin);
      const int64_t head = row / head_dim_, within = row % head_dim_;
      const int64_t stored_row = head * head_dim_ + 2 * (within % half) + within / half;
      file_->read(tensor, stored_row * width + column, stored_row * width + column + take, out);
      out += take, begin += take;
    }
  }
  std::shared_ptr<const GgufFile> file_;
  int64_t head_dim_ = 0;
  std::map<std::string, Place> places_;
  std::vector<TensorInfo> infos_;
};

std::optional<int64_t> id_of(const GgufFile& file, const std::string& key) {
  return file.metadata().contains(key) ? std::optional(file.integer(key)) : std::nullopt;
}

SpecialTokenIds special_ids(const GgufFile& file) {
  SpecialTokenIds ids;
  // Chat models end a turn with one token and a text with another; both stop generation.
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const auto id = id_of(file, key);
        id && std::find(ids.eos.begin(), ids.eos.end(), *id) == ids.eos.end())
      ids.eos.push_back(*id);
  ids.bos = id_of(file, "tokenizer.ggml.bos_token_id");
  ids.pad = id_of(file, "tokenizer.ggml.padding_token_id");
  return ids;
}

template <class T>
const std::vector<T>* list_of(const GgufFile& file, const std::string& key) {
  const GgufArray* found = file.array(key);
  if (!found) return nullptr;
  const auto* list = std::get_if<std::vector<T>>(found);
  HEARTH_CHECK(list, BadInput, "{}: {} has elements of the wrong type", file.path(), key);
  return list;
}

}  // namespace

HfConfig gguf_model_config(const GgufFile& file) {
  const std::string arch = known_architecture(file);
  HfConfig out;
  ModelConfig& model = out.model;
  model.family = arch;
  const GgufTensor* embedding = file.find("token_embd.weight");
  HEARTH_CHECK(embedding && embedding->shape.size() == 2, BadInput,
               "{}: has no matrix token_embd.weight; is it a vocabulary-only file?", file.path());
  model.vocab_size = embedding->shape[0];
  model.hidden_size = file.integer(arch + ".embedding_length");
  model.intermediate_size = file.integer(arch + ".feed_forward_length");
  model.num_hidden_layers = file.integer(arch + ".block_count");
  model.num_attention_heads = file.integer(arch + ".attention.head_count");
  model.num_key_value_heads = file.integer_or(arch + ".attention.head_count_kv", model.num_attention_heads);
  HEARTH_CHECK(model.num_attention_heads > 0, BadInput, "{}: {}.attention.head_count must be > 0",
               file.path(), arch);
  model.head_dim =
      file.integer_or(arch + ".attention.key_length", model.hidden_size / model.num_attention_heads);
  for (const char* key : {".attention.value_length", ".rope.dimension_count"})
    HEARTH_CHECK(file.integer_or(arch + key, model.head_dim) == model.head_dim, BadInput,
                 "{}: {}{} = {} differs from the head dimension {}", file.path(), arch, key,
                 file.integer_or(arch + key, 0), model.head_dim);
  model.max_position_embeddings = file.integer(arch + ".context_length");
  model.rope_theta = file.number_or(arch + ".rope.freq_base", 10000.0);
  // The file holds fp32; what config.json said is the shortest decimal of it.
  model.rms_norm_eps = std::stod(
      fmt::format("{}", static_cast<float>(file.number(arch + ".attention.layer_norm_rms_epsilon"))));
  model.tie_word_embeddings = !file.find("output.weight");
  model.attention_bias = file.find("blk.0.attn_q.bias") != nullptr;
  model.attention_output_bias = file.find("blk.0.attn_output.bias") != nullptr;
  model.qk_norm = file.find("blk.0.attn_q_norm.weight") != nullptr;
  refuse_unsupported(file, arch, model.max_position_embeddings);
  require_valid(model, file.path());
  model.rope_scaling = scaling_from_divisors(file, model);
  out.ids = special_ids(file);
  out.dtype = DType::F32;
  return out;
}

std::unique_ptr<TensorSource> open_gguf_weights(std::shared_ptr<const GgufFile> file,
                                                const ModelConfig& config) {
  return std::make_unique<GgufWeights>(std::move(file), config);
}

std::optional<GgufTokenizerFields> gguf_tokenizer_fields(const GgufFile& file) {
  const auto* tokens = list_of<std::string>(file, "tokenizer.ggml.tokens");
  if (!tokens) return std::nullopt;
  GgufTokenizerFields fields;
  fields.model = file.text("tokenizer.ggml.model");
  fields.pre = file.text_or("tokenizer.ggml.pre", "");
  fields.tokens = *tokens;
  if (const auto* scores = list_of<double>(file, "tokenizer.ggml.scores"))
    for (const double score : *scores) fields.scores.push_back(static_cast<float>(score));
  if (const auto* types = list_of<int64_t>(file, "tokenizer.ggml.token_type")) {
    for (const int64_t type : *types) {
      HEARTH_CHECK(type >= 0 && type <= 6, BadInput,
                   "{}: tokenizer.ggml.token_type holds {}, expected 0 to 6", file.path(), type);
      fields.token_types.push_back(static_cast<int32_t>(type));
    }
  }
  if (const auto* merges = list_of<std::string>(file, "tokenizer.ggml.merges")) fields.merges = *merges;
  fields.bos_id = id_of(file, "tokenizer.ggml.bos_token_id");
  fields.eos_id = id_of(file, "tokenizer.ggml.eos_token_id");
  fields.unk_id = id_of(file, "tokenizer.ggml.unknown_token_id");
  fields.pad_id = id_of(file, "tokenizer.ggml.padding_token_id");
  const auto flag = [&](const char* key) {
    return file.metadata().contains(key) ? std::optional(file.flag_or(key, false)) : std::nullopt;
  };
  fields.add_bos = flag("tokenizer.ggml.add_bos_token");
  fields.add_eos = flag("tokenizer.ggml.add_eos_token");
  fields.add_space_prefix = flag("tokenizer.ggml.add_space_prefix");
  fields.chat_template = file.text_or("tokenizer.chat_template", "");
  return fields;
}

}  // namespace hearth
