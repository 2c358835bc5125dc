#include "data/chat/number_literal.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "data/chat/text.h"

namespace hearth::chat {

namespace {

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'z') return c - 'a' + 10;
  if (c >= 'A' && c <= 'Z') return c - 'A' + 10;
  return 99;
}

// Without underscores, which must stand between digits.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
      continue;
    }
    const bool between =
        i > 0 && i + 1 < text.size() && digit_of(text[i - 1]) < 36 && digit_of(text[i + 1]) < 36;
    if (!between) return std::nullopt;
  }
  return out;
}

}  // namespace

std::optional<Int> read_integer(std::string_view text, int64_t base) {
  text = strip(text, std::nullopt, Side::Both);
  const bool negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text = text.substr(1);
  const char mark = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
  if (mark != '\0' && text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == mark)
    text = text.substr(text[2] == '_' ? 3 : 2);
  const auto digits = without_underscores(text);
  if (!digits || digits->empty()) return std::nullopt;
  Int value = 0;
  for (const char c : *digits) {
    if (digit_of(c) >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, Int{base}, &value) ||
        __builtin_add_overflow(value, Int{digit_of(c)}, &value))
      fault("integers of more than 127 bits are not supported");
  }
  return negative ? -value : value;
}

std::optional<double> read_float(std::string_view text) {
  const auto digits = without_underscores(strip(text, std::nullopt, Side::Both));
  if (!digits || digits->empty()) return std::nullopt;
  std::string word = lower(*digits);
  const bool negative = word[0] == '-';
  if (word[0] == '-' || word[0] == '+') word = word.substr(1);
  if (word == "inf" || word == "infinity")
    return negative ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
  if (word == "nan") return std::numeric_limits<double>::quiet_NaN();
  // strtod knows hexadecimal floats, Python does not.
  if (word.empty() || word.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
  if (word[0] == '+' || word[0] == '-') return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (end != word.c_str() + word.size()) return std::nullopt;
  return negative ? -value : value;
}

}  // namespace hearth::chat
