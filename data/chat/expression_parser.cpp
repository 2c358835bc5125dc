#include "data/chat/expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace hearth::chat {

// Counts how deep the parser is in itself; every level of a nested expression costs some ten calls.
class ExpressionParser::Nested {
 public:
  explicit Nested(ExpressionParser& parser) : parser_(parser) {
    if (++parser_.depth_ > kMaxNested)
      parser_.tokens_.origin().refuse(parser_.tokens_.line(),
                                      "expressions stand in one another more than {} deep", kMaxNested);
  }
  ~Nested() { --parser_.depth_; }

 private:
  static constexpr int kMaxNested = 150;
  ExpressionParser& parser_;
};

namespace {

void deepen(int& depth, const ExpressionPtr& child) {
  if (child) depth = std::max(depth, child->depth);
}

std::vector<ExpressionPtr> children_of(ExpressionPtr a, ExpressionPtr b = nullptr) {
  std::vector<ExpressionPtr> out;
  out.push_back(std::move(a));
  if (b) out.push_back(std::move(b));
  return out;
}

}  // namespace

ExpressionPtr ExpressionParser::checked(ExpressionPtr node) const {
  int depth = 0;
  for (const auto& child : node->children) deepen(depth, child);
  for (const auto& child : node->call.positional) deepen(depth, child);
  for (const auto& [name, child] : node->call.named) deepen(depth, child);
  deepen(depth, node->call.star);
  deepen(depth, node->call.double_star);
  node->depth = depth + 1;
  if (node->depth > kMaxTreeDepth)
    tokens_.origin().refuse(node->line, "an expression has more than {} operations in a chain",
                            kMaxTreeDepth);
  return node;
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, int line, std::vector<ExpressionPtr> children) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  node->children = std::move(children);
  return checked(std::move(node));
}

ExpressionPtr ExpressionParser::constant(int line, Value value) {
  auto node = make(ExpressionKind::Constant, line);
  node->constant = std::move(value);
  return node;
}

ExpressionPtr ExpressionParser::expression() {
  const Nested nested(*this);
  const int line = tokens_.line();
  ExpressionPtr value = any_of();
  while (tokens_.skip_name("if")) {
    std::vector<ExpressionPtr> children = children_of(any_of());
    children.push_back(std::move(value));
    children.push_back(tokens_.skip_name("else") ? expression() : nullptr);
    value = make(ExpressionKind::Conditional, line, std::move(children));
  }
  return value;
}

ExpressionPtr ExpressionParser::simple_expression() {
  const Nested nested(*this);
  return any_of();
}

ExpressionPtr ExpressionParser::tuple() {
  return tuple_of(&ExpressionParser::expression, "", false);
}

ExpressionPtr ExpressionParser::simple_tuple(std::string_view end_name) {
  return tuple_of(&ExpressionParser::simple_expression, end_name, false);
}

bool ExpressionParser::at_tuple_end(std::string_view end_name) const {
  return tokens_.at(TokenKind::OutputEnd) || tokens_.at(TokenKind::BlockEnd) || tokens_.at_symbol(")") ||
         (!end_name.empty() && tokens_.at_name(end_name));
}

ExpressionPtr ExpressionParser::tuple_of(Parse parse, std::string_view end_name, bool parentheses) {
  const int line = tokens_.line();
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (!at_tuple_end(end_name)) {
    items.push_back((this->*parse)());
    if (!tokens_.skip_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && items.size() == 1) return std::move(items[0]);
  if (!is_tuple && !parentheses)
    tokens_.origin().refuse(line, "expected an expression, got {}", shown(tokens_.current()));
  return make(ExpressionKind::Tuple, line, std::move(items));
}

ExpressionPtr ExpressionParser::any_of() {
  const int line = tokens_.line();
  ExpressionPtr left = all_of();
  while (tokens_.skip_name("or"))
    left = make(ExpressionKind::Or, line, children_of(std::move(left), all_of()));
  return left;
}

ExpressionPtr ExpressionParser::all_of() {
  const int line = tokens_.line();
  ExpressionPtr left = negation();
  while (tokens_.skip_name("and"))
    left = make(ExpressionKind::And, line, children_of(std::move(left), negation()));
  return left;
}

ExpressionPtr ExpressionParser::negation() {
  const int line = tokens_.line();
  if (!tokens_.skip_name("not")) return comparison();
  const Nested nested(*this);
  return make(ExpressionKind::Not, line, children_of(negation()));
}

ExpressionPtr ExpressionParser::comparison() {
  static constexpr std::array<std::pair<std::string_view, Comparison>, 6> kSymbols = {
      {{"==", Comparison::Equal},
       {"!=", Comparison::NotEqual},
       {"<", Comparison::Less},
       {"<=", Comparison::LessEqual},
       {">", Comparison::Greater},
       {">=", Comparison::GreaterEqual}}};
  const int line = tokens_.line();
  std::vector<ExpressionPtr> operands;
  operands.push_back(sum());
  std::vector<Comparison> comparisons;
  while (true) {
    const auto symbol = std::find_if(kSymbols.begin(), kSymbols.end(),
                                     [&](const auto& entry) { return tokens_.at_symbol(entry.first); });
    if (symbol != kSymbols.end()) {
      comparisons.push_back(symbol->second);
    } else if (tokens_.at_name("in")) {
      comparisons.push_back(Comparison::In);
    } else if (tokens_.at_name("not") && tokens_.ahead().kind == TokenKind::Name &&
               tokens_.ahead().text == "in") {
      comparisons.push_back(Comparison::NotIn);
      tokens_.next();
    } else {
      break;
    }
    tokens_.next();
    operands.push_back(sum());
  }
  if (comparisons.empty()) return std::move(operands[0]);
  auto node = make(ExpressionKind::Compare, line, std::move(operands));
  node->comparisons = std::move(comparisons);
  return node;
}

ExpressionPtr ExpressionParser::sum() {
  ExpressionPtr left = concatenation();
  while (tokens_.at_symbol("+") || tokens_.at_symbol("-")) {
    const int line = tokens_.line();
    const auto kind = tokens_.next().text == "+" ? ExpressionKind::Add : ExpressionKind::Subtract;
    left = make(kind, line, children_of(std::move(left), concatenation()));
  }
  return left;
}

ExpressionPtr ExpressionParser::concatenation() {
  const int line = tokens_.line();
  std::vector<ExpressionPtr> parts;
  parts.push_back(product());
  while (tokens_.skip_symbol("~")) parts.push_back(product());
  if (parts.size() == 1) return std::move(parts[0]);
  return make(ExpressionKind::Concat, line, std::move(parts));
}

ExpressionPtr ExpressionParser::product() {
  ExpressionPtr left = power();
  while (true) {
    const int line = tokens_.line();
    ExpressionKind kind;
    if (tokens_.skip_symbol("*"))
      kind = ExpressionKind::Multiply;
    else if (tokens_.skip_symbol("/"))
      kind = ExpressionKind::Divide;
    else if (tokens_.skip_symbol("//"))
      kind = ExpressionKind::FloorDivide;
    else if (tokens_.skip_symbol("%"))
      kind = ExpressionKind::Modulo;
    else
      return left;
    left = make(kind, line, children_of(std::move(left), power()));
  }
}

ExpressionPtr ExpressionParser::power() {
  const int line = tokens_.line();
  ExpressionPtr left = unary(true);
  while (tokens_.skip_symbol("**"))
    left = make(ExpressionKind::Power, line, children_of(std::move(left), unary(true)));
  return left;
}

ExpressionPtr ExpressionParser::unary() {
  return unary(true);
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const Nested nested(*this);
  const int line = tokens_.line();
  ExpressionPtr node;
  if (tokens_.skip_symbol("-"))
    node = make(ExpressionKind::Negative, line, children_of(unary(false)));
  else if (tokens_.skip_symbol("+"))
    node = make(ExpressionKind::Positive, line, children_of(unary(false)));
  else
    node = primary();
  node = postfix(std::move(node));
  return with_filters ? filters_and_tests(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::primary() {
  const int line = tokens_.line();
  if (tokens_.at(TokenKind::Name)) {
    const std::string name = tokens_.next().text;
    if (name == "true" || name == "True") return constant(line, Value(true));
    if (name == "false" || name == "False") return constant(line, Value(false));
    if (name == "none" || name == "None") return constant(line, Value());
    loaded_(name);
    auto node = make(ExpressionKind::Name, line);
    node->name = name;
    return node;
  }
  if (tokens_.at(TokenKind::String)) {
    std::string text;
    while (tokens_.at(TokenKind::String)) text += tokens_.next().text;
    return constant(line, Value(std::move(text)));
  }
  if (tokens_.at(TokenKind::Integer) || tokens_.at(TokenKind::Float)) return number();
  if (tokens_.skip_symbol("(")) {
    ExpressionPtr node = tuple_of(&ExpressionParser::expression, "", true);
    tokens_.expect_symbol(")");
    return node;
  }
  if (tokens_.at_symbol("[")) return list();
  if (tokens_.at_symbol("{")) return dict();
  tokens_.origin().refuse(line, "unexpected {}", shown(tokens_.current()));
}

ExpressionPtr ExpressionParser::number() {
  const Token& token = tokens_.next();
  if (token.kind == TokenKind::Float) {
    double value = 0;
    const char* end = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), end, value).ec == std::errc::result_out_of_range)
      value = std::strtod(token.text.c_str(), nullptr);  // infinity or 0, as Python reads it
    return constant(token.line, Value(value));
  }
  Int value = 0;
  for (const char digit : token.text) {
    if (__builtin_mul_overflow(value, Int{10}, &value) ||
        __builtin_add_overflow(value, Int{digit - '0'}, &value))
      tokens_.origin().refuse(token.line, "a number has more than 127 bits");
  }
  return constant(token.line, Value(value));
}

ExpressionPtr ExpressionParser::list() {
  const int line = tokens_.line();
  tokens_.expect_symbol("[");
  std::vector<ExpressionPtr> items;
  while (!tokens_.at_symbol("]")) {
    if (!items.empty()) tokens_.expect_symbol(",");
    if (tokens_.at_symbol("]")) break;
    items.push_back(expression());
  }
  tokens_.expect_symbol("]");
  return make(ExpressionKind::List, line, std::move(items));
}

ExpressionPtr ExpressionParser::dict() {
  const int line = tokens_.line();
  tokens_.expect_symbol("{");
  std::vector<ExpressionPtr> items;
  while (!tokens_.at_symbol("}")) {
    if (!items.empty()) tokens_.expect_symbol(",");
    if (tokens_.at_symbol("}")) break;
    items.push_back(expression());
    tokens_.expect_symbol(":");
    items.push_back(expression());
  }
  tokens_.expect_symbol("}");
  return make(ExpressionKind::Dict, line, std::move(items));
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr subject) {
  while (true) {
    if (tokens_.at_symbol("."))
      subject = attribute(std::move(subject));
    else if (tokens_.at_symbol("["))
      subject = subscript(std::move(subject));
    else if (tokens_.at_symbol("("))
      subject = call(std::move(subject));
    else
      return subject;
  }
}

ExpressionPtr ExpressionParser::attribute(ExpressionPtr subject) {
  const int line = tokens_.line();
  tokens_.expect_symbol(".");
  if (tokens_.at(TokenKind::Integer))
    return make(ExpressionKind::Item, line, children_of(std::move(subject), number()));
  auto node = make(ExpressionKind::Attribute, line, children_of(std::move(subject)));
  node->name = tokens_.expect_identifier("a name or number after '.'");
  return node;
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr subject) {
  const int line = tokens_.line();
  tokens_.expect_symbol("[");
  std::vector<ExpressionPtr> children = children_of(std::move(subject));
  bool is_slice = false;
  if (!tokens_.at_symbol(":")) {
    children.push_back(expression());
  } else {
    children.push_back(nullptr);
  }
  while (children.size() < 4 && tokens_.skip_symbol(":")) {
    is_slice = true;
    const bool empty = tokens_.at_symbol("]") || tokens_.at_symbol(":");
    children.push_back(empty ? nullptr : expression());
  }
  if (tokens_.at_symbol(",")) tokens_.origin().refuse(line, "an index of several parts is not supported");
  tokens_.expect_symbol("]");
  if (is_slice) children.resize(4);
  return make(is_slice ? ExpressionKind::Slice : ExpressionKind::Item, line, std::move(children));
}

ExpressionPtr ExpressionParser::filters_and_tests(ExpressionPtr subject) {
  while (true) {
    if (tokens_.skip_symbol("|"))
      subject = filter(std::move(subject));
    else if (tokens_.at_name("is"))
      subject = test(std::move(subject));
    else if (tokens_.at_symbol("("))  // calls bind to the result of a filter
      subject = call(std::move(subject));
    else
      return subject;
  }
}

ExpressionPtr ExpressionParser::filters() {
  ExpressionPtr node = filter(nullptr);
  while (tokens_.skip_symbol("|")) node = filter(std::move(node));
  return node;
}

ExpressionPtr ExpressionParser::filter(ExpressionPtr subject) {
  auto node = std::make_unique<Expression>();
  node->kind = ExpressionKind::Filter;
  node->line = tokens_.line();
  node->name = tokens_.expect_identifier("the name of a filter");
  while (tokens_.skip_symbol(".")) node->name += "." + tokens_.expect_identifier("the name of a filter");
  node->children.push_back(std::move(subject));
  if (tokens_.at_symbol("(")) call_arguments(node->call);
  return checked(std::move(node));
}

ExpressionPtr ExpressionParser::test(ExpressionPtr subject) {
  const Nested nested(*this);
  auto node = std::make_unique<Expression>();
  node->kind = ExpressionKind::Test;
  node->line = tokens_.line();
  tokens_.expect_name("is");
  const bool negated = tokens_.skip_name("not");
  node->name = tokens_.expect_identifier("the name of a test");
  while (tokens_.skip_symbol(".")) node->name += "." + tokens_.expect_identifier("the name of a test");
  node->children.push_back(std::move(subject));
  const Token& token = tokens_.current();
  const bool name_begins =
      token.kind == TokenKind::Name && token.text != "else" && token.text != "or" && token.text != "and";
  if (tokens_.at_symbol("(")) {
    call_arguments(node->call);
  } else if (name_begins || token.kind == TokenKind::String || token.kind == TokenKind::Integer ||
             token.kind == TokenKind::Float || tokens_.at_symbol("[") || tokens_.at_symbol("{")) {
    if (tokens_.at_name("is")) tokens_.origin().refuse(tokens_.line(), "tests cannot be chained with 'is'");
    node->call.positional.push_back(postfix(primary()));
  }
  const int line = node->line;
  ExpressionPtr result = checked(std::move(node));
  return negated ? make(ExpressionKind::Not, line, children_of(std::move(result))) : std::move(result);
}

ExpressionPtr ExpressionParser::call(ExpressionPtr subject) {
  auto node = std::make_unique<Expression>();
  node->kind = ExpressionKind::Call;
  node->line = tokens_.line();
  node->children.push_back(std::move(subject));
  call_arguments(node->call);
  return checked(std::move(node));
}

void ExpressionParser::call_arguments(CallNode& call) {
  tokens_.expect_symbol("(");
  for (bool first = true; !tokens_.at_symbol(")"); first = false) {
    if (!first) tokens_.expect_symbol(",");
    if (tokens_.at_symbol(")")) break;
    const int line = tokens_.line();
    const auto require = [&](bool order) {
      if (!order) tokens_.origin().refuse(line, "the arguments of a call are in the wrong order");
    };
    if (tokens_.skip_symbol("**")) {
      require(!call.double_star);
      call.double_star = expression();
    } else if (tokens_.skip_symbol("*")) {
      require(!call.star && !call.double_star);
      call.star = expression();
    } else if (tokens_.at(TokenKind::Name) && tokens_.ahead().kind == TokenKind::Symbol &&
               tokens_.ahead().text == "=") {
      require(!call.double_star);
      std::string name = tokens_.next().text;
      tokens_.next();
      for (const auto& [other, unused] : call.named)
        if (other == name) tokens_.origin().refuse(line, "the argument '{}' is given twice", name);
      call.named.emplace_back(std::move(name), expression());
    } else {
      require(!call.star && !call.double_star && call.named.empty());
      call.positional.push_back(expression());
    }
  }
  tokens_.expect_symbol(")");
}

Target ExpressionParser::single_target() {
  const Nested nested(*this);
  if (tokens_.skip_symbol("(")) {
    Target inner = target();
    tokens_.expect_symbol(")");
    return inner;
  }
  const int line = tokens_.line();
  Target result;
  result.name = tokens_.expect_identifier("a name to assign to");
  for (const char* constant_name : {"true", "false", "none", "True", "False", "None"})
    if (result.name == constant_name) tokens_.origin().refuse(line, "cannot assign to '{}'", result.name);
  if (tokens_.skip_symbol(".")) result.attribute = tokens_.expect_identifier("the name of an attribute");
  return result;
}

Target ExpressionParser::target(std::string_view end_name) {
  const int line = tokens_.line();
  Target several;
  bool is_tuple = false;
  while (!at_tuple_end(end_name) && !tokens_.at_symbol("=")) {
    several.items.push_back(single_target());
    if (!tokens_.skip_symbol(",")) break;
    is_tuple = true;
  }
  if (several.items.empty())
    tokens_.origin().refuse(line, "expected a name to assign to, got {}", shown(tokens_.current()));
  if (is_tuple) return several;
  Target single = std::move(several.items[0]);
  return single;
}

}  // namespace hearth::chat
