// Values as text: Python's str, repr, json.dumps, `%` and str.format.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/chat/objects.h"
#include "data/chat/value.h"

namespace hearth::chat {

std::string to_text(Int value);
std::string to_text(double value);  // Python's repr of a float: the shortest digits that read back equal

// Python's str(value): what `{{ value }}` writes; undefined is empty.
std::string str(const Value& value, Budget& budget);
std::string repr(const Value& value, Budget& budget);

// json.dumps as transformers' filter `tojson` calls it.
struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // of one level
  std::string item_separator = ", ", key_separator = ": ";
};
std::string to_json(const Value& value, const JsonOptions& options, Budget& budget);

// Python's `format % operand`, and format.format(arguments). Conversions that are not known are a Fault.
std::string format_percent(std::string_view format, const Value& operand, Budget& budget);
std::string format_braces(std::string_view format, const Arguments& arguments, Budget& budget);

}  // namespace hearth::chat
