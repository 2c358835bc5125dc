// A model's own chat template (Jinja source of tokenizer_config.json or chat_template.jinja), executed by a
// small interpreter of the subset that real templates use. What it does not know is refused with the
// template's name and line, never guessed. Language: Jinja 3.1 (palletsprojects.com/p/jinja) in the
// environment of transformers' apply_chat_template: trim_blocks, lstrip_blocks, loop controls, `tojson`,
// `raise_exception`, `strftime_now`, `{% generation %}`.
//
// A ChatTemplate is immutable after parsing; render may be called from any number of threads.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hearth {

class ChatTemplate {
 public:
  // `name` stands in messages. Throws Error{BadInput} "name:line: ..." for a construct that is not known.
  static ChatTemplate parse(std::string_view source, std::string name);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  struct Rendered {
    std::string text;
    // Byte ranges [begin, end) of text that stand inside {% generation %} blocks, ascending.
    std::vector<std::pair<size_t, size_t>> generated;
  };
  // `variables`: an object with `messages` and whatever else the template asks for (add_generation_prompt,
  // tools, documents, bos_token, eos_token, enable_thinking ...); keys keep their order. Throws
  // Error{BadInput} "name:line: ..." where the template raises an exception, an operation does not fit its
  // operands, or the output passes 64 MiB (a loop without end).
  Rendered render(const nlohmann::ordered_json& variables) const;
  // Whether the source has a {% generation %} block.
  bool marks_generation() const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
