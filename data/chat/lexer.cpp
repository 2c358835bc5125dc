#include "data/chat/lexer.h"

#include <algorithm>

#include "data/chat/string_literal.h"
#include "data/chat/text.h"
#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

constexpr size_t kMaxSourceBytes = size_t{4} << 20;  // the longest template in use has 17 KB

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name_part(char c) {
  return is_name_start(c) || is_digit(c);
}

// jinja2 reads every kind of line end as \n, and drops one at the end of the source.
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string_view source, const Origin& origin)
      : source_(with_plain_newlines(source)), origin_(origin) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) {
      const size_t begin = next_mark();
      take_text(begin);
      if (pos_ >= source_.size()) break;
      if (source_[begin + 1] == '#')
        skip_comment();
      else if (!take_raw())
        take_mark();
    }
    add(TokenKind::End, "");
    return std::move(tokens_);
  }

 private:
  bool at(std::string_view text) const { return std::string_view(source_).substr(pos_, text.size()) == text; }
  char peek(size_t offset = 0) const {
    return pos_ + offset < source_.size() ? source_[pos_ + offset] : '\0';
  }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }
  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    pos_ = to;
  }
  // The first position from `pos` on that is not white space.
  size_t after_space(size_t pos) const {
    while (pos < source_.size() && is_space(unicode::decode_at(source_, pos)))
      pos += unicode::sequence_length(static_cast<unsigned char>(source_[pos]));
    return pos;
  }

  size_t next_mark() const {
    for (size_t pos = pos_; (pos = source_.find('{', pos)) != std::string::npos; ++pos) {
      const char next = pos + 1 < source_.size() ? source_[pos + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return pos;
    }
    return source_.size();
  }

  void take_text(size_t end) {
    std::string_view text = std::string_view(source_).substr(pos_, end - pos_);
    if (end < source_.size()) {
      const char sign = end + 2 < source_.size() ? source_[end + 2] : '\0';
      if (sign == '-')
        text = strip(text, std::nullopt, Side::Right);
      else if (sign != '+' && source_[end + 1] != '{')
        text = without_indent(text);
    }
    if (!text.empty()) add(TokenKind::Text, std::string(text));
    advance(end);
  }

  // lstrip_blocks: white space between the start of the line and a block or comment.
  std::string_view without_indent(std::string_view text) const {
    const size_t newline = text.rfind('\n');
    if (newline == std::string_view::npos && !at_line_start_) return text;
    const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
    return strip(text.substr(line_begin), std::nullopt, Side::Both).empty() ? text.substr(0, line_begin)
                                                                            : text;
  }

  // Moves behind a mark's end of 2 characters that begins at `end` (its sign included), and behind what the
  // sign or trim_blocks takes.
  enum class Newline { Trim, Keep };
  void close(size_t end, Newline newline) {
    size_t after = end + 2;
    if (source_[end] == '-')
      after = after_space(end + 3);
    else if (source_[end] == '+')
      after = end + 3;
    else if (newline == Newline::Trim && after < source_.size() && source_[after] == '\n')
      ++after;
    advance(after);
    at_line_start_ = source_[after - 1] == '\n';
  }

  void skip_comment() {
    const size_t begin = pos_ + (peek(2) == '-' || peek(2) == '+' ? 3 : 2);
    const size_t end = source_.find("#}", begin);
    if (end == std::string::npos) origin_.refuse(line_, "a comment {{# has no end #}}");
    const bool signed_end = end > begin && (source_[end - 1] == '-' || source_[end - 1] == '+');
    close(signed_end ? end - 1 : end, Newline::Trim);
  }

  // Where `{% word %}` stands at `pos`: the position of its end mark, sign included.
  size_t end_of_simple_block(size_t pos, std::string_view word, bool plus_allowed) const {
    pos += 2;
    if (pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+')) ++pos;
    pos = after_space(pos);
    if (source_.compare(pos, word.size(), word) != 0) return std::string::npos;
    pos = after_space(pos + word.size());
    const bool has_sign =
        pos < source_.size() && (source_[pos] == '-' || (plus_allowed && source_[pos] == '+'));
    return source_.compare(pos + (has_sign ? 1 : 0), 2, "%}") == 0 ? pos : std::string::npos;
  }

  bool take_raw() {
    if (!at("{%")) return false;
    const size_t begin_end = end_of_simple_block(pos_, "raw", false);
    if (begin_end == std::string::npos) return false;
    const int begin_line = line_;
    close(begin_end, Newline::Keep);
    for (size_t end = pos_; (end = source_.find("{%", end)) != std::string::npos; end += 2) {
      const size_t close_at = end_of_simple_block(end, "endraw", true);
      if (close_at == std::string::npos) continue;
      take_text(end);
      close(close_at, Newline::Trim);
      return true;
    }
    origin_.refuse(begin_line, "a block {{% raw %}} has no end {{% endraw %}}");
  }

  void take_mark() {
    const bool block = source_[pos_ + 1] == '%';
    const int begin_line = line_;
    add(block ? TokenKind::BlockBegin : TokenKind::OutputBegin, source_.substr(pos_, 2));
    advance(pos_ + (peek(2) == '-' || peek(2) == '+' ? 3 : 2));
    open_.clear();
    while (true) {
      const size_t space_end = after_space(pos_);
      if (open_.empty() && take_end(block)) return;
      if (space_end > pos_) {
        advance(space_end);
        continue;
      }
      if (pos_ >= source_.size())
        origin_.refuse(begin_line, "{} has no end {}", block ? "{%" : "{{", block ? "%}" : "}}");
      take_token();
    }
  }

  bool take_end(bool block) {
    const char sign = peek();
    const bool has_sign = sign == '-' || (block && sign == '+');
    if (peek(has_sign ? 1 : 0) != (block ? '%' : '}') || peek(has_sign ? 2 : 1) != '}') return false;
    add(block ? TokenKind::BlockEnd : TokenKind::OutputEnd, block ? "%}" : "}}");
    close(pos_, block ? Newline::Trim : Newline::Keep);
    return true;
  }

  void take_token() {
    const char c = peek();
    if (is_name_start(c)) {
      size_t end = pos_;
      while (end < source_.size() && is_name_part(source_[end])) ++end;
      add(TokenKind::Name, source_.substr(pos_, end - pos_));
      pos_ = end;
    } else if (is_digit(c)) {
      take_number();
    } else if (c == '"' || c == '\'') {
      take_string(c);
    } else {
      take_symbol();
    }
  }

  // Digits with single underscores between them, from `pos` on.
  size_t after_digits(size_t pos) const {
    while (pos < source_.size() && is_digit(source_[pos])) {
      ++pos;
      if (pos + 1 < source_.size() && source_[pos] == '_' && is_digit(source_[pos + 1])) ++pos;
    }
    return pos;
  }
  bool digit_at(size_t pos) const { return pos < source_.size() && is_digit(source_[pos]); }

  void take_number() {
    size_t end = after_digits(pos_);
    bool is_float = false;
    // What follows a dot is an index (`a.0.1`), so no fraction begins there.
    const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
    if (!after_dot && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      end = after_digits(end + 1);
      is_float = true;
    }
    if (!after_dot && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t exponent =
          end + (end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 2 : 1);
      if (digit_at(exponent)) {
        end = after_digits(exponent);
        is_float = true;
      }
    }
    std::string digits = source_.substr(pos_, end - pos_);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    if (!is_float && digits.size() > 1 && digits[0] == '0' &&
        digits.find_first_not_of('0') != std::string::npos)
      origin_.refuse(line_, "a number may not begin with 0: {}", digits);
    if (!is_float && end < source_.size() && is_name_start(source_[end]))
      origin_.refuse(line_, "a number is followed by '{}'", source_[end]);
    add(is_float ? TokenKind::Float : TokenKind::Integer, digits);
    pos_ = end;
  }

  void take_string(char quote) {
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) origin_.refuse(line_, "a string has no end {}", quote);
    std::string problem;
    auto value = unescape(std::string_view(source_).substr(pos_ + 1, end - pos_ - 1), problem);
    if (!value) origin_.refuse(line_, "{}", problem);
    add(TokenKind::String, std::move(*value));
    advance(end + 1);
  }

  void take_symbol() {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    const auto two = std::find_if(std::begin(kTwo), std::end(kTwo), [&](auto symbol) { return at(symbol); });
    const char c = peek();
    if (two == std::end(kTwo) && kOne.find(c) == std::string_view::npos) {
      const size_t length = unicode::sequence_length(static_cast<unsigned char>(c));
      origin_.refuse(line_, "unexpected character '{}'", source_.substr(pos_, length));
    }
    const std::string symbol = two == std::end(kTwo) ? std::string(1, c) : std::string(*two);
    if (c == '(') open_ += ')';
    if (c == '[') open_ += ']';
    if (c == '{') open_ += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open_.empty()) origin_.refuse(line_, "unexpected '{}'", c);
      if (open_.back() != c) origin_.refuse(line_, "unexpected '{}', expected '{}'", c, open_.back());
      open_.pop_back();
    }
    add(TokenKind::Symbol, symbol);
    pos_ += symbol.size();
  }

  const std::string source_;
  const Origin& origin_;
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::string open_;  // the closing brackets that are awaited, innermost last
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const Origin& origin) {
  if (source.size() > kMaxSourceBytes)
    origin.refuse(1, "the template has {} bytes, more than {}", source.size(), kMaxSourceBytes);
  if (!unicode::is_valid_utf8(source)) origin.refuse(1, "the template is not valid UTF-8");
  return Lexer(source, origin).run();
}

std::string shown(const Token& token) {
  switch (token.kind) {
    case TokenKind::Text:
      return "text";
    case TokenKind::String:
      return "a string";
    case TokenKind::End:
      return "the end of the template";
    default:
      return "'" + token.text + "'";
  }
}

}  // namespace hearth::chat
