// HF config.json and generation_config.json <-> ModelConfig and the special token ids.
// Reads the key forms of transformers 4 and 5 (rope_theta at the top or in rope_parameters, rope_scaling with
// `type` or `rope_type`, torch_dtype or dtype) and writes both at once, because readers that know one form
// only fall back to defaults silently. What would change the model's outputs and Hearth does not compute is
// refused by name. Pure functions. Errors: Error{BadInput} that names the file, the key and the value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "trainer/model/model_config.h"

namespace hearth {

// Token ids as config.json and generation_config.json hold them. Lists of EOS ids keep their order.
struct SpecialTokenIds {
  std::vector<int64_t> eos;  // empty: unknown
  std::optional<int64_t> bos, pad;
  bool operator==(const SpecialTokenIds&) const = default;
};

struct HfConfig {
  ModelConfig model;  // valid
  SpecialTokenIds ids;
  std::optional<DType> dtype;  // dtype or torch_dtype, where the file has one of them
};

// Families: LlamaForCausalLM (llama; SmolLM is one too), Qwen2ForCausalLM, Qwen3ForCausalLM,
// MistralForCausalLM. Absent keys take the defaults of transformers for that architecture. `origin` is for
// messages.
HfConfig parse_hf_config(std::string_view text, std::string_view origin);

// The ids of a generation_config.json. Ids that it does not have stay unset.
SpecialTokenIds parse_generation_ids(std::string_view text, std::string_view origin);

// config.json for `model`. Throws Error{Config} where transformers has no architecture that computes it
// (qwen2 without q, k, v biases, ...). Ends with a newline.
std::string hf_config_text(const ModelConfig& model, const SpecialTokenIds& ids, DType dtype);

// generation_config.json: every other key of `source` (the text of the model's own file; may be empty) is
// kept, the ids come from `ids`.
std::string generation_config_text(std::string_view source, const SpecialTokenIds& ids);

// "LlamaForCausalLM", ... of a family.
std::string_view hf_architecture(std::string_view family);

}  // namespace hearth
