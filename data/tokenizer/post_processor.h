// The `post_processor` of tokenizer.json, as far as it concerns ids: what goes before and after a single
// sequence. TemplateProcessing, ByteLevel (offsets only), RobertaProcessing, BertProcessing, Sequence; others
// are Error{BadInput}.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace hearth {

struct PostProcessor {
  std::vector<int32_t> before, after;
};

PostProcessor read_post_processor(const nlohmann::json& spec);

}  // namespace hearth
