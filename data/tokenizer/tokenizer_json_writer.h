// Building blocks of a Hugging Face tokenizer.json, for the converters and the trainer. Pure.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace hearth::tokenizer_json {

using Json = nlohmann::ordered_json;

struct NamedId {
  std::string token;
  int64_t id;
};

enum class AddedKind { Special, Plain };

// {"token": id, ...} in the order of the ids.
Json vocab(std::span<const std::string> tokens);

Json added_token(const NamedId& token, AddedKind kind);

// TemplateProcessing with `before` and `after` around each sequence; null when both are empty.
Json template_processing(const std::vector<NamedId>& before, const std::vector<NamedId>& after);

// A Split step with a regular expression, and ByteLevel without one behind it.
Json split_then_byte_level(const std::string& pattern);
enum class Gpt2Split { Yes, No };  // whether ByteLevel splits by the expression of GPT-2
Json byte_level(Gpt2Split split);

struct Parts {
  Json added_tokens = Json::array();
  Json normalizer, pre_tokenizer, post_processor, decoder, model;  // null unless set
};
std::string document(const Parts& parts);

}  // namespace hearth::tokenizer_json
