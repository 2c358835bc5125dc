#include "data/chat/scopes.h"

#include <set>

namespace hearth::chat {

namespace {

// One block's names, as far as they were met in the order of the source.
class Frame {
 public:
  explicit Frame(const Frame* outer) : outer_(outer) {}

  bool knows(const std::string& name) const {
    return met_.count(name) != 0 || (outer_ != nullptr && outer_->knows(name));
  }
  void parameter(const std::string& name) { met_.insert(name); }
  void load(const std::string& name) {
    if (!knows(name)) met_.insert(name);
  }
  void store(const std::string& name, bool conditional) {
    if (!knows(name) && !conditional) declared_.push_back(name);
    met_.insert(name);
  }
  const std::vector<std::string>& declared() const { return declared_; }

  void load(const ExpressionPtr& expression) {
    if (!expression) return;
    if (expression->kind == ExpressionKind::Name) load(expression->name);
    for (const auto& child : expression->children) load(child);
    for (const auto& child : expression->call.positional) load(child);
    for (const auto& [name, child] : expression->call.named) load(child);
    load(expression->call.star);
    load(expression->call.double_star);
  }
  void store(const Target& target, bool conditional) {
    for (const Target& item : target.items) store(item, conditional);
    if (!target.items.empty()) return;
    if (target.attribute.empty())
      store(target.name, conditional);
    else
      load(target.name);
  }
  void parameters(const Target& target) {
    for (const Target& item : target.items) parameters(item);
    if (target.items.empty()) parameter(target.name);
  }

  // What the statements of the block itself do; those inside of other blocks come with their own frames.
  void meet(const Block& block, bool conditional = false) {
    for (const auto& statement : block) meet(*statement, conditional);
  }

 private:
  void meet(const Statement& statement, bool conditional) {
    switch (statement.kind) {
      case StatementKind::If:
        for (const auto& [condition, body] : statement.branches) {
          load(condition);
          meet(body, true);
        }
        return meet(statement.else_body, true);
      case StatementKind::For:
        return load(statement.expressions[0]);
      case StatementKind::Macro:
        return store(statement.macro->name, conditional);
      case StatementKind::SetBlock:
        return store(statement.target, conditional);
      default:
        for (const auto& expression : statement.expressions) load(expression);
        if (statement.kind == StatementKind::Set) store(statement.target, conditional);
    }
  }

  const Frame* const outer_;
  std::set<std::string> met_;
  std::vector<std::string> declared_;
};

void declare_inside(const Block& block, const Frame& frame);

std::vector<std::string> declare(const Block& block, Frame& frame) {
  frame.meet(block);
  declare_inside(block, frame);
  return frame.declared();
}

void declare_macro(MacroNode& macro, const Frame& outer) {
  Frame frame(&outer);
  for (const auto& name : macro.parameters) frame.parameter(name);
  for (const auto& value : macro.defaults) frame.load(value);
  macro.declared = declare(macro.body, frame);
}

void declare_inside(const Block& block, const Frame& frame) {
  for (const auto& statement : block) {
    if (statement->kind == StatementKind::If) {
      for (const auto& [condition, body] : statement->branches) declare_inside(body, frame);
      declare_inside(statement->else_body, frame);
      continue;
    }
    if (statement->macro) {
      declare_macro(*statement->macro, frame);
      continue;
    }
    Frame inner(&frame), otherwise(&frame);
    if (statement->kind == StatementKind::For) {
      inner.parameters(statement->target);
      inner.parameter("loop");
    }
    for (const Target& target : statement->targets) inner.store(target, true);  // of `with`: set at its start
    statement->declared = declare(statement->body, inner);
    statement->else_declared = declare(statement->else_body, otherwise);
  }
}

}  // namespace

std::vector<std::string> declare_names(Block& block) {
  Frame frame(nullptr);
  return declare(block, frame);
}

}  // namespace hearth::chat
