// The tokens of a template while they are parsed. Throws Error{BadInput} with the line for what was not
// expected.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "data/chat/lexer.h"

namespace hearth::chat {

class TokenStream {
 public:
  TokenStream(std::vector<Token> tokens, const Origin& origin)
      : tokens_(std::move(tokens)), origin_(origin) {}

  const Token& current() const { return tokens_[pos_]; }
  const Token& ahead() const { return tokens_[pos_ + 1 < tokens_.size() ? pos_ + 1 : pos_]; }
  const Origin& origin() const { return origin_; }
  int line() const { return current().line; }

  const Token& next() {
    const Token& token = tokens_[pos_];
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool at(TokenKind kind) const { return current().kind == kind; }
  bool at_symbol(std::string_view text) const { return at(TokenKind::Symbol) && current().text == text; }
  bool at_name(std::string_view text) const { return at(TokenKind::Name) && current().text == text; }
  bool skip_symbol(std::string_view text) { return at_symbol(text) && (next(), true); }
  bool skip_name(std::string_view text) { return at_name(text) && (next(), true); }

  void expect_symbol(std::string_view text) {
    if (!skip_symbol(text)) origin_.refuse(line(), "expected '{}', got {}", text, shown(current()));
  }
  void expect_name(std::string_view text) {
    if (!skip_name(text)) origin_.refuse(line(), "expected '{}', got {}", text, shown(current()));
  }
  std::string expect_identifier(std::string_view what) {
    if (!at(TokenKind::Name)) origin_.refuse(line(), "expected {}, got {}", what, shown(current()));
    return next().text;
  }
  void expect(TokenKind kind, std::string_view text) {
    if (!at(kind)) origin_.refuse(line(), "expected '{}', got {}", text, shown(current()));
    next();
  }

 private:
  const std::vector<Token> tokens_;
  const Origin& origin_;
  size_t pos_ = 0;
};

}  // namespace hearth::chat
