// Template source to tokens: text between the marks, and what stands inside of {{ }} and {% %}. White space
// around marks is taken away here (trim_blocks, lstrip_blocks, the signs - and +), as jinja2 does.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace hearth::chat {

// Names the template in messages.
struct Origin {
  std::string name;
  template <class... Args>
  [[noreturn]] void refuse(int line, fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ErrorKind::BadInput,
                fmt::format("{}:{}: {}", name, line, fmt::format(format, std::forward<Args>(args)...)));
  }
};

enum class TokenKind {
  Text,
  BlockBegin,
  BlockEnd,
  OutputBegin,
  OutputEnd,
  Name,
  String,
  Integer,
  Float,
  Symbol,
  End
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;  // of a String: the value, escapes resolved
};

// Ends with one End. Throws Error{BadInput} with the line.
std::vector<Token> tokenize(std::string_view source, const Origin& origin);

// A token as messages show it.
std::string shown(const Token& token);

}  // namespace hearth::chat
