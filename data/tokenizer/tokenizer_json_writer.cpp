#include "data/tokenizer/tokenizer_json_writer.h"

namespace hearth::tokenizer_json {

Json vocab(std::span<const std::string> tokens) {
  Json object = Json::object();
  auto& members =
      object.get_ref<Json::object_t&>();  // operator[] would search the whole list for each insertion
  members.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) members.emplace_back(tokens[i], i);
  return object;
}

Json added_token(const NamedId& token, AddedKind kind) {
  return {{"id", token.id},
          {"content", token.token},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", kind == AddedKind::Special}};
}

Json template_processing(const std::vector<NamedId>& before, const std::vector<NamedId>& after) {
  if (before.empty() && after.empty()) return nullptr;
  Json single = Json::array(), pair = Json::array(), specials = Json::object();
  const auto append = [&](const std::vector<NamedId>& tokens, int type_id) {
    for (const NamedId& token : tokens) {
      const Json item{{"SpecialToken", {{"id", token.token}, {"type_id", type_id}}}};
      if (type_id == 0) single.push_back(item);
      pair.push_back(item);
      specials[token.token] = {
          {"id", token.token}, {"ids", Json::array({token.id})}, {"tokens", Json::array({token.token})}};
    }
  };
  append(before, 0);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  pair.push_back(single.back());
  append(after, 0);
  append(before, 1);
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  append(after, 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

Json byte_level(Gpt2Split split) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", split == Gpt2Split::Yes}};
}

Json split_then_byte_level(const std::string& pattern) {
  const Json split{
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level(Gpt2Split::No)})}};
}

std::string document(const Parts& parts) {
  const Json json{{"version", "1.0"},
                  {"truncation", nullptr},
                  {"padding", nullptr},
                  {"added_tokens", parts.added_tokens},
                  {"normalizer", parts.normalizer},
                  {"pre_tokenizer", parts.pre_tokenizer},
                  {"post_processor", parts.post_processor},
                  {"decoder", parts.decoder},
                  {"model", parts.model}};
  return json.dump(1);
}

}  // namespace hearth::tokenizer_json
