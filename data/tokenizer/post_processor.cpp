#include "data/tokenizer/post_processor.h"

#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/tokenizer.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr const char* kWhere = "post_processor";

int32_t checked_id(const nlohmann::json& id) {
  HEARTH_CHECK(id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t{kMaxTokenId}, BadInput,
               "post_processor: id {} must be an integer from 0 to {}", id.dump(), kMaxTokenId);
  return id.get<int32_t>();
}

PostProcessor read_template(const nlohmann::json& spec) {
  const nlohmann::json& specials = jf::member(spec, "special_tokens", kWhere);
  PostProcessor result;
  int sequences = 0;
  for (const auto& item : jf::array(spec, "single", kWhere)) {
    if (jf::find(item, "Sequence") != nullptr) {
      ++sequences;
      continue;
    }
    const std::string name = jf::string(jf::member(item, "SpecialToken", kWhere), "id", kWhere);
    auto& side = sequences == 0 ? result.before : result.after;
    for (const auto& id : jf::array(jf::member(specials, name, kWhere), "ids", kWhere))
      side.push_back(checked_id(id));
  }
  HEARTH_CHECK(sequences == 1, BadInput,
               "post_processor: the single template must hold the text once, it holds it {} times",
               sequences);
  return result;
}

// ["<s>", 0]
int32_t pair_id(const nlohmann::json& spec, const char* key) {
  const nlohmann::json& pair = jf::array(spec, key, kWhere);
  HEARTH_CHECK(pair.size() == 2, BadInput, "post_processor: {} must be a token and its id", key);
  return checked_id(pair[1]);
}

}  // namespace

PostProcessor read_post_processor(const nlohmann::json& spec) {
  const std::string type = jf::string(spec, "type", kWhere);
  if (type == "TemplateProcessing") return read_template(spec);
  if (type == "ByteLevel") return {};
  if (type == "RobertaProcessing" || type == "BertProcessing")
    return {{pair_id(spec, "cls")}, {pair_id(spec, "sep")}};
  HEARTH_CHECK(
      type == "Sequence", BadInput,
      "post_processor: type {:?} is not supported; known: TemplateProcessing, ByteLevel, RobertaProcessing, "
      "BertProcessing, Sequence",
      type);
  PostProcessor all;
  for (const auto& step : jf::array(spec, "processors", kWhere)) {
    const PostProcessor one = read_post_processor(step);
    all.before.insert(all.before.begin(), one.before.begin(), one.before.end());
    all.after.insert(all.after.end(), one.after.begin(), one.after.end());
  }
  return all;
}

}  // namespace hearth
