#include "data/chat/string_literal.h"

#include <fmt/core.h>

#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

int digit_of(char c, int base) {
  int digit = 99;
  if (c >= '0' && c <= '9') digit = c - '0';
  if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
  if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
  return digit < base ? digit : -1;
}

// Up to `most` digits from `pos` on; moves `pos` behind them.
char32_t read_digits(std::string_view body, size_t& pos, size_t most, int base, size_t& count) {
  char32_t value = 0;
  for (count = 0; count < most && pos < body.size() && digit_of(body[pos], base) >= 0; ++count, ++pos)
    value = value * static_cast<char32_t>(base) + static_cast<char32_t>(digit_of(body[pos], base));
  return value;
}

}  // namespace

std::optional<std::string> unescape(std::string_view body, std::string& problem) {
  static constexpr std::string_view kPlain = "\\'\"abfnrtv", kMeaning = "\\'\"\a\b\f\n\r\t\v";
  std::string out;
  for (size_t pos = 0; pos < body.size();) {
    if (body[pos] != '\\') {
      out += body[pos++];
      continue;
    }
    const char c = pos + 1 < body.size() ? body[pos + 1] : '\0';
    const size_t plain = kPlain.find(c);
    if (pos + 1 < body.size() && plain != std::string_view::npos) {
      out += kMeaning[plain];
      pos += 2;
    } else if (c == '\n') {  // the line goes on
      pos += 2;
    } else if (digit_of(c, 8) >= 0 || c == 'x' || c == 'u' || c == 'U') {
      const bool octal = digit_of(c, 8) >= 0;
      const size_t most = octal ? 3 : c == 'x' ? 2 : c == 'u' ? 4 : 8;
      size_t end = pos + (octal ? 1 : 2), count = 0;
      const char32_t code = read_digits(body, end, most, octal ? 8 : 16, count);
      if ((!octal && count < most) || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
        problem = fmt::format("'{}' in a string is no character", body.substr(pos, end - pos));
        return std::nullopt;
      }
      unicode::append_utf8(out, code);
      pos = end;
    } else if (c == 'N') {
      problem = "'\\N' in a string: characters by name are not supported";
      return std::nullopt;
    } else {  // Python keeps what is no escape
      out += body[pos++];
    }
  }
  return out;
}

}  // namespace hearth::chat
