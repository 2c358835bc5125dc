// Numbers in text as Python's int() and float() read them: white space around, single underscores between
// digits.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "data/chat/value.h"

namespace hearth::chat {

std::optional<Int> read_integer(std::string_view text, int64_t base);
std::optional<double> read_float(std::string_view text);

}  // namespace hearth::chat
