// ModelConfig as JSON with its own field names: what state.json of a checkpoint holds under "model".
// Not the form of HF config.json; that is trainer/interchange/hf_config.h.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "trainer/model/model_config.h"

namespace hearth {

nlohmann::json model_config_to_json(const ModelConfig& config);

// Strict: an unknown key, a wrong type, or a value that ModelConfig::validate refuses is Error{BadInput},
// which names `origin` and every violation. A missing key keeps its default, so that older checkpoints stay
// readable.
ModelConfig model_config_from_json(const nlohmann::json& json, std::string_view origin);

// Throws Error{BadInput} listing every violation of ModelConfig::validate, and extents so large that they can
// only be garbage (products of sizes must not overflow).
void require_valid(const ModelConfig& config, std::string_view origin);

}  // namespace hearth
