// The expressions of templates. Used by parser.cpp alone.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/syntax_tree.h"
#include "data/chat/token_stream.h"

namespace hearth::chat {

class ExpressionParser {
 public:
  // `loaded` hears of every name that an expression reads.
  ExpressionParser(TokenStream& tokens, std::function<void(const std::string&)> loaded)
      : tokens_(tokens), loaded_(std::move(loaded)) {}

  ExpressionPtr expression();
  // An expression without `if ... else`, as `for` and `if` take it.
  ExpressionPtr simple_expression();
  // One expression, or a tuple of several without parentheses.
  ExpressionPtr tuple();
  ExpressionPtr simple_tuple(std::string_view end_name = "");
  // `name(...) | name2`, as {% filter %} and {% set x | ... %} have it; the innermost subject is null.
  ExpressionPtr filters();
  ExpressionPtr unary();
  Target target(std::string_view end_name = "");
  ExpressionPtr make(ExpressionKind kind, int line, std::vector<ExpressionPtr> children = {});

 private:
  using Parse = ExpressionPtr (ExpressionParser::*)();
  class Nested;
  ExpressionPtr tuple_of(Parse parse, std::string_view end_name, bool parentheses);
  bool at_tuple_end(std::string_view end_name) const;
  ExpressionPtr any_of();
  ExpressionPtr all_of();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters);
  ExpressionPtr primary();
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr number();
  ExpressionPtr postfix(ExpressionPtr subject);
  ExpressionPtr subscript(ExpressionPtr subject);
  ExpressionPtr attribute(ExpressionPtr subject);
  ExpressionPtr filters_and_tests(ExpressionPtr subject);
  ExpressionPtr filter(ExpressionPtr subject);
  ExpressionPtr test(ExpressionPtr subject);
  ExpressionPtr call(ExpressionPtr subject);
  ExpressionPtr constant(int line, Value value);
  ExpressionPtr checked(ExpressionPtr node) const;
  void call_arguments(CallNode& call);
  Target single_target();

  TokenStream& tokens_;
  std::function<void(const std::string&)> loaded_;
  int depth_ = 0;
};

}  // namespace hearth::chat
