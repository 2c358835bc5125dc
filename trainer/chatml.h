// ChatML conversations (<|im_start|>role ... <|im_end|>) without a template engine: what `hearth generate
// --chat` needs.
#pragma once

#include <string>
#include <string_view>

namespace hearth {

// The default system turn that a ChatML template writes where a conversation has none: the literal between
// "<|im_start|>system\n" and "<|im_end|>" in its Jinja source. Empty where the template has none.
std::string default_system_message(std::string_view chat_template);

}  // namespace hearth
