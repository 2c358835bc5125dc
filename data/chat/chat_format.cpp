#include "data/chat/chat_format.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

constexpr std::array<std::string_view, 7> kOwnVariables{
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"};

ChatTemplate parse_template(const Tokenizer& tokenizer, const std::string& origin) {
  HEARTH_CHECK(
      !tokenizer.chat_template().empty(), BadInput,
      "{}: the tokenizer has no chat template, so conversations have no text; put the chat_template.jinja "
      "of the model whose markup you want beside the tokenizer's files (data prepare: or give it with "
      "--chat-template FILE)",
      origin);
  return ChatTemplate::parse(tokenizer.chat_template(), "chat template of " + origin);
}

std::unique_ptr<Tokenizer> convert(const Tokenizer& tokenizer, const std::string& origin) {
  const auto& files = tokenizer.files();
  const bool sentencepiece = std::any_of(files.begin(), files.end(),
                                         [](const auto& file) { return file.first == "tokenizer.model"; });
  return sentencepiece ? Tokenizer::from_files(tokenizer.export_files(), origin) : nullptr;
}

}  // namespace

ChatFormat::ChatFormat(const Tokenizer& tokenizer, const std::string& origin, ordered_json variables)
    : tokenizer_(tokenizer),
      converted_(convert(tokenizer, origin)),
      template_(parse_template(tokenizer, origin)),
      variables_(variables.is_null() ? ordered_json::object() : std::move(variables)) {
  for (const auto key : kOwnVariables)
    HEARTH_REQUIRE(!variables_.contains(key),
                   "template variable '{}' comes from the conversation or the tokenizer", key);
  const auto set = [&](const char* key, std::optional<int32_t> id) {
    if (id) variables_[key] = tokenizer_.id_to_token(*id);
  };
  set("bos_token", tokenizer_.bos_id());
  set("eos_token", tokenizer_.eos_id());
  set("pad_token", tokenizer_.pad_id());
  find_end_tokens();
  find_end_of_turn();
}

// Special tokens, but for the bos and those that the generation prompt consists of: these open a turn.
void ChatFormat::find_end_tokens() {
  std::string opening;
  const ordered_json probe = ordered_json::array({{{"role", "user"}, {"content", "x"}}});
  try {
    const std::string with = render(probe, nullptr, GenerationPrompt::Add).text;
    const std::string without = render(probe, nullptr, GenerationPrompt::Omit).text;
    if (with.starts_with(without)) opening = with.substr(without.size());
  } catch (const Error&) {
    opening
        .clear();  // a template may ask for more than one user turn; then every special token may end a turn
  }
  const auto vocab_size = static_cast<int32_t>(tokenizer().vocab_size());
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (!tokenizer().is_special(id)) continue;
    const std::string token = tokenizer().id_to_token(id);
    const bool opens = id == tokenizer().bos_id() || opening.find(token) != std::string::npos;
    if (!token.empty() && (!opens || id == tokenizer().eos_id())) end_tokens_.push_back(token);
  }
  std::stable_sort(end_tokens_.begin(), end_tokens_.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
}

void ChatFormat::find_end_of_turn() {
  const std::string answer = "7c1e0f";
  const ordered_json probe = ordered_json::array(
      {{{"role", "user"}, {"content", "x"}}, {{"role", "assistant"}, {"content", answer}}});
  std::string text;
  try {
    text = render(probe, nullptr, GenerationPrompt::Omit).text;
  } catch (const Error&) {
    return;  // the template takes other conversations only
  }
  const size_t found = text.rfind(answer);
  if (found == std::string::npos) return;
  const size_t end = end_of_turn(text, found + answer.size());
  for (const auto& token : end_tokens_) {
    const bool is_end = end >= token.size() && text.compare(end - token.size(), token.size(), token) == 0;
    if (is_end && end > found + answer.size()) return void(end_of_turn_id_ = tokenizer().token_to_id(token));
  }
}

ChatTemplate::Rendered ChatFormat::render(const ordered_json& messages, const ordered_json& tools,
                                          GenerationPrompt generation_prompt) const {
  ordered_json variables = variables_;
  variables["messages"] = messages;
  variables["tools"] = tools;  // null where there are none, as transformers has it
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = generation_prompt == GenerationPrompt::Add;
  return template_.render(variables);
}

std::vector<int32_t> ChatFormat::encode(std::string_view text) const {
  return tokenizer().encode(text, SpecialTokens::Skip);
}

size_t ChatFormat::end_of_turn(std::string_view text, size_t at) const {
  const size_t token = std::min(text.find_first_not_of(" \t\r\n", at), text.size());
  for (const auto& end : end_tokens_)
    if (text.substr(token).starts_with(end)) return token + end.size();
  return at;
}

ordered_json parse_template_variables(const std::vector<std::string>& settings) {
  ordered_json variables = ordered_json::object();
  for (const auto& setting : settings) {
    const size_t equals = setting.find('=');
    HEARTH_REQUIRE(equals != std::string::npos && equals > 0, "--template-variable {}: expected key=value",
                   setting);
    const std::string key = setting.substr(0, equals), text = setting.substr(equals + 1);
    HEARTH_REQUIRE(!variables.contains(key), "--template-variable {} is given twice", key);
    ordered_json value = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    variables[key] = value.is_discarded() ? ordered_json(text) : std::move(value);
  }
  return variables;
}

}  // namespace hearth
