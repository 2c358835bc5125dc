#include "trainer/chatml.h"

namespace hearth {

std::string default_system_message(std::string_view chat_template) {
  // In Jinja source the line break of a string literal is written as the two characters \n, or as a real one.
  for (const std::string_view marker :
       {std::string_view("<|im_start|>system\\n"), std::string_view("<|im_start|>system\n")}) {
    for (size_t at = chat_template.find(marker); at != std::string_view::npos;
         at = chat_template.find(marker, at + 1)) {
      const size_t begin = at + marker.size(), end = chat_template.find("<|im_end|>", begin);
      if (end == std::string_view::npos) break;
      const std::string_view text = chat_template.substr(begin, end - begin);
      // An expression between the two means the turn of a real conversation, not the default.
      if (!text.empty() && text.find_first_of("{}'\"") == std::string_view::npos) return std::string(text);
    }
  }
  return {};
}

}  // namespace hearth
