// String literals of templates: Python's escapes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hearth::chat {

// The value of what stands between the quotes; nothing, and `problem` set, for an escape that is malformed or
// stands for no character.
std::optional<std::string> unescape(std::string_view body, std::string& problem);

}  // namespace hearth::chat
