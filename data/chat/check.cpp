#include "data/chat/check.h"

#include "data/chat/filters.h"

namespace hearth::chat {

namespace {

// Where a statement stands.
struct Place {
  // Directly inside of `if`: jinja2 finds out about unknown filters there only when they are used, and
  // templates rely on that.
  bool conditional = false;
  bool in_loop = false;
  const char* captured_by = nullptr;  // what takes the output, instead of the text of the whole
};

class Checker {
 public:
  explicit Checker(const Origin& origin) : origin_(origin) {}

  void visit(const Block& block, const Place& place) {
    for (const auto& statement : block) visit(*statement, place);
  }
  bool marks_generation() const { return marks_generation_; }

 private:
  static Place inner(Place place) {
    place.conditional = false;
    return place;
  }
  static Place captured(Place place, const char* by) {
    place.conditional = false;
    place.captured_by = by;
    return place;
  }
  static Place function(Place place, const char* by) {
    place = captured(place, by);
    place.in_loop = false;
    return place;
  }

  void visit(const Statement& statement, const Place& place) {
    switch (statement.kind) {
      case StatementKind::Text:
        return;
      case StatementKind::If:
        return visit_if(statement, place);
      case StatementKind::For:
        return visit_for(statement, place);
      case StatementKind::Macro:
      case StatementKind::CallBlock:
        visit_all(statement.expressions, place);
        for (const auto& value : statement.macro->defaults) visit(value, inner(place));
        return visit(statement.macro->body,
                     function(place, statement.kind == StatementKind::Macro ? "macro" : "call"));
      case StatementKind::Break:
      case StatementKind::Continue:
        if (!place.in_loop)
          origin_.refuse(statement.line, "'{}' outside of a loop",
                         statement.kind == StatementKind::Break ? "break" : "continue");
        return;
      case StatementKind::Generation:
        if (place.captured_by != nullptr)
          origin_.refuse(statement.line,
                         "a generation block inside of '{}' has no place of its own in the output",
                         place.captured_by);
        marks_generation_ = true;
        return visit(statement.body, function(place, "generation"));
      case StatementKind::SetBlock:
        visit_all(statement.expressions, place);
        return visit(statement.body, captured(place, "set"));
      case StatementKind::FilterBlock:
        visit_all(statement.expressions, place);
        return visit(statement.body, captured(place, "filter"));
      case StatementKind::Output:
      case StatementKind::Set:
      case StatementKind::With:
        visit_all(statement.expressions, place);
        return visit(statement.body, inner(place));
    }
  }

  void visit_if(const Statement& statement, Place place) {
    place.conditional = true;
    for (const auto& [condition, body] : statement.branches) {
      visit(condition, place);
      visit(body, place);
    }
    visit(statement.else_body, place);
  }

  void visit_for(const Statement& statement, const Place& place) {
    visit(statement.expressions[0], place);
    visit(statement.expressions[1], inner(place));
    Place body = statement.recursive ? captured(place, "recursive loop") : inner(place);
    visit(statement.else_body, body);
    body.in_loop = true;
    visit(statement.body, body);
  }

  void visit_all(const std::vector<ExpressionPtr>& expressions, const Place& place) {
    for (const auto& expression : expressions) visit(expression, place);
  }

  void visit(const ExpressionPtr& expression, Place place) {
    if (!expression) return;
    if (expression->kind == ExpressionKind::Conditional) place.conditional = true;
    if (expression->kind == ExpressionKind::Filter)
      visit_name(*expression, "filter", filter_support(expression->name), place);
    if (expression->kind == ExpressionKind::Test)
      visit_name(*expression, "test", test_support(expression->name), place);
    visit_all(expression->children, place);
    visit_all(expression->call.positional, place);
    for (const auto& [name, value] : expression->call.named) visit(value, place);
    visit(expression->call.star, place);
    visit(expression->call.double_star, place);
  }

  void visit_name(const Expression& expression, const char* what, Support support, const Place& place) {
    if (support == Support::NotSupported)
      origin_.refuse(expression.line, "the {} '{}' is not supported", what, expression.name);
    if (support == Support::Unknown && !place.conditional)
      origin_.refuse(expression.line, "No {} named '{}'.", what, expression.name);
  }

  const Origin& origin_;
  bool marks_generation_ = false;
};

}  // namespace

Checked check_template(const Block& block, const Origin& origin) {
  Checker checker(origin);
  checker.visit(block, Place{});
  return {checker.marks_generation()};
}

}  // namespace hearth::chat
