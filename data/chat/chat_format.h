// A tokenizer together with its chat template: messages -> text -> ids, as transformers' apply_chat_template
// does it. What `data prepare` trains on and what `generate --chat` asks with come from here, so they cannot
// differ. Immutable, thread-safe. The Tokenizer must outlive it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/chat_template.h"
#include "data/tokenizer/tokenizer.h"

namespace hearth {

// Whether the text ends with what opens the assistant's turn (add_generation_prompt).
enum class GenerationPrompt { Omit, Add };

class ChatFormat {
 public:
  // Takes the template of the tokenizer. `origin` names the tokenizer in messages; `variables`: an object of
  // further variables of the template ({"enable_thinking": false}). Throws Error{BadInput} where the
  // tokenizer has no template, {Usage} for variables that the conversation itself sets.
  ChatFormat(const Tokenizer& tokenizer, const std::string& origin, nlohmann::ordered_json variables = {});

  // `tools`: a list, or null. Throws Error{BadInput} where the template refuses the conversation.
  ChatTemplate::Rendered render(const nlohmann::ordered_json& messages, const nlohmann::ordered_json& tools,
                                GenerationPrompt generation_prompt) const;
  bool marks_generation() const { return template_.marks_generation(); }
  // Special tokens that are written out in `text` become their ids; nothing is added.
  std::vector<int32_t> encode(std::string_view text) const;

  // The tokenizer that encode uses. For a SentencePiece tokenizer.model, which knows no special tokens in
  // text, that is its conversion to tokenizer.json, with the same ids.
  const Tokenizer& tokenizer() const { return converted_ ? *converted_ : tokenizer_; }
  // End of the token that ends an assistant's turn where `text` has one at `at`, white space before it
  // allowed; else `at`. Such a token is the eos, or a special token that opens no turn (<|im_end|>,
  // <|eot_id|>).
  size_t end_of_turn(std::string_view text, size_t at) const;
  // The token with which the template ends an answer, where it has one: generation stops there.
  std::optional<int32_t> end_of_turn_id() const { return end_of_turn_id_; }

 private:
  void find_end_tokens();
  void find_end_of_turn();
  const Tokenizer& tokenizer_;
  std::unique_ptr<Tokenizer> converted_;
  ChatTemplate template_;
  nlohmann::ordered_json variables_;
  std::vector<std::string> end_tokens_;  // longest first
  std::optional<int32_t> end_of_turn_id_;
};

// The variables of --template-variable key=value, where value is JSON, else taken as a string. Throws
// Error{Usage}.
nlohmann::ordered_json parse_template_variables(const std::vector<std::string>& settings);

}  // namespace hearth
