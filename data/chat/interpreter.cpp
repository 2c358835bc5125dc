#include "data/chat/interpreter.h"

#include <algorithm>

namespace hearth::chat {

// Works in another scope until the end of the block.
class Interpreter::Inside {
 public:
  Inside(Interpreter& interpreter, ScopePtr scope) : scope_(interpreter.scope_), before_(std::move(scope)) {
    std::swap(scope_, before_);
  }
  ~Inside() { std::swap(scope_, before_); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  ScopePtr& scope_;
  ScopePtr before_;
};

// Takes what is written, until the end of the block.
class Interpreter::Capture {
 public:
  explicit Capture(Interpreter& interpreter) : out_(interpreter.out_), before_(interpreter.out_) {
    out_ = &text_;
  }
  ~Capture() { out_ = before_; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  std::string take() { return std::move(text_); }

 private:
  std::string*& out_;
  std::string* before_;
  std::string text_;
};

Interpreter::ScopePtr Interpreter::make_scope(ScopePtr parent, const std::vector<std::string>& declared) {
  auto scope = std::make_shared<Scope>(std::move(parent));
  for (const auto& name : declared)
    scope->set(name, Value::undefined(fmt::format("'{}' is undefined", name)));
  return scope;
}

void Interpreter::run(const Block& block, const std::vector<std::string>& declared) {
  scope_ = make_scope(nullptr, declared);
  run_block(block);
}

Interpreter::Flow Interpreter::run_block(const Block& block) {
  for (const auto& statement : block) {
    const Flow flow = run_statement(*statement);
    if (flow != Flow::Normal) return flow;
  }
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  const Deeper deeper(*this);
  line_ = statement.line;
  budget_.spend(1);
  switch (statement.kind) {
    case StatementKind::Text:
      write(statement.text);
      return Flow::Normal;
    case StatementKind::Output:
      run_output(statement);
      return Flow::Normal;
    case StatementKind::If:
      return run_if(statement);
    case StatementKind::For:
      return run_for(statement);
    case StatementKind::Set:
      assign(statement.target, evaluate(*statement.expressions[0]));
      return Flow::Normal;
    case StatementKind::SetBlock:
      return run_set_block(statement);
    case StatementKind::Macro:
      define_macro(statement);
      return Flow::Normal;
    case StatementKind::CallBlock:
      run_call_block(statement);
      return Flow::Normal;
    case StatementKind::FilterBlock:
      return run_filter_block(statement);
    case StatementKind::With:
      return run_with(statement);
    case StatementKind::Generation:
      return run_generation(statement);
    case StatementKind::Break:
      return Flow::Break;
    case StatementKind::Continue:
      return Flow::Continue;
  }
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run_if(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches)
    if (evaluate(*condition).truth()) return run_block(body);
  return run_block(statement.else_body);
}

void Interpreter::run_output(const Statement& statement) {
  for (const auto& expression : statement.expressions) write_value(evaluate(*expression));
}

// As in transformers, the body is a function of its own: what it sets is gone behind it.
Interpreter::Flow Interpreter::run_generation(const Statement& statement) {
  const Inside inside(*this, make_scope(scope_, statement.declared));
  const size_t begin = text_.size();
  const Flow flow = run_block(statement.body);
  generated_.emplace_back(begin, text_.size());
  return flow;
}

Interpreter::Flow Interpreter::run_set_block(const Statement& statement) {
  Capture capture(*this);
  Flow flow = Flow::Normal;
  {
    const Inside inside(*this, make_scope(scope_, statement.declared));
    flow = run_block(statement.body);
  }
  if (flow != Flow::Normal) return flow;
  Value value(capture.take());
  if (statement.expressions[0]) {
    Value before = std::exchange(filter_input_, std::move(value));
    value = evaluate(*statement.expressions[0]);
    filter_input_ = std::move(before);
  }
  assign(statement.target, value);
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run_filter_block(const Statement& statement) {
  Value result;
  {
    Capture capture(*this);
    const Inside inside(*this, make_scope(scope_, statement.declared));
    const Flow flow = run_block(statement.body);
    if (flow != Flow::Normal) return flow;
    Value before = std::exchange(filter_input_, Value(capture.take()));
    result = evaluate(*statement.expressions[0]);
    filter_input_ = std::move(before);
  }
  write_value(result);
  return Flow::Normal;
}

Interpreter::Flow Interpreter::run_with(const Statement& statement) {
  std::vector<Value> values;
  for (const auto& expression : statement.expressions) values.push_back(evaluate(*expression));
  const Inside inside(*this, make_scope(scope_, statement.declared));
  for (size_t i = 0; i < values.size(); ++i) assign(statement.targets[i], values[i]);
  return run_block(statement.body);
}

Value Interpreter::make_macro(const MacroNode& node) {
  auto macro = std::make_shared<Macro>();
  macro->node = &node;
  macro->scope = scope_;
  circles_.add(scope_);
  return Value(ObjectPtr(std::move(macro)));
}

void Interpreter::define_macro(const Statement& statement) {
  scope_->set(statement.macro->name, make_macro(*statement.macro));
}

void Interpreter::run_call_block(const Statement& statement) {
  const Expression& node = *statement.expressions[0];
  const Value callee = evaluate(*node.children[0]);
  Arguments arguments = evaluate_arguments(node.call);
  arguments.named.emplace_back("caller", make_macro(*statement.macro));
  line_ = statement.line;
  write_value(call(callee, arguments));
}

Interpreter::Flow Interpreter::run_for(const Statement& statement) {
  const Value iterable = evaluate(*statement.expressions[0]);
  return run_loop(statement, iterable, 0);
}

std::vector<Value> Interpreter::filtered(const Statement& statement, std::vector<Value> items) {
  if (!statement.expressions[1]) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    const Inside inside(*this, make_scope(scope_, {}));
    assign(statement.target, item);
    if (evaluate(*statement.expressions[1]).truth()) kept.push_back(std::move(item));
  }
  return kept;
}

Interpreter::Flow Interpreter::run_loop(const Statement& statement, const Value& iterable, int64_t level) {
  line_ = statement.line;
  const auto loop = std::make_shared<Loop>();
  loop->items = filtered(statement, iterate(iterable, budget_));
  loop->level = level;
  for (const Value& item : loop->items) loop->depth = std::max(loop->depth, checked_depth(item.depth() + 1));
  if (statement.recursive) {
    loop->recursive = &statement;
    loop->scope = scope_;
    circles_.add(scope_);
  }
  if (loop->items.empty()) {
    const Inside inside(*this, make_scope(scope_, statement.else_declared));
    return run_block(statement.else_body);
  }
  for (; loop->index < loop->items.size(); ++loop->index) {
    budget_.spend(1);
    const Inside inside(*this, make_scope(scope_, statement.declared));
    assign(statement.target, loop->items[loop->index]);
    scope_->set("loop", Value(ObjectPtr(loop)));
    if (run_block(statement.body) == Flow::Break) break;
  }
  return Flow::Normal;
}

Value Interpreter::call_loop(const Loop& loop, const Arguments& arguments) {
  if (loop.recursive == nullptr) fault("The loop must have the 'recursive' marker to be called recursively.");
  const Bound bound("loop", arguments, {"iterable"}, 1);
  Capture capture(*this);
  const Inside inside(*this, loop.scope);
  run_loop(*loop.recursive, bound.at(0), loop.level + 1);
  return Value(capture.take());
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.items.empty()) {
    if (!iterable(value)) fault("cannot unpack non-iterable {} object", value.type_name());
    const auto items = iterate(value, budget_);
    const size_t wanted = target.items.size();
    if (items.size() > wanted) fault("too many values to unpack (expected {})", wanted);
    if (items.size() < wanted)
      fault("not enough values to unpack (expected {}, got {})", wanted, items.size());
    for (size_t i = 0; i < wanted; ++i) assign(target.items[i], items[i]);
    return;
  }
  if (target.attribute.empty()) return scope_->set(target.name, value);
  const Value owner = evaluate_name(target.name);
  if (!owner.is(ObjectKind::Namespace)) fault("cannot assign attribute on non-namespace object");
  set_namespace_attribute(static_cast<Namespace&>(*owner.object()), target.attribute, value);
}

void Interpreter::write(std::string_view text) {
  if (out_->size() + text.size() > Budget::kMaxTextBytes)
    fault("the output would pass {} bytes", Budget::kMaxTextBytes);
  budget_.spend(1 + text.size() / Budget::kBytesPerUnit);
  out_->append(text);
}

void Interpreter::write_value(const Value& value) {
  if (value.is_text())
    write(value.text().bytes);
  else
    write(str(value, budget_));
}

// The variables with which a macro's body begins.
Interpreter::ScopePtr Interpreter::bind(const Macro& macro, const Arguments& arguments) {
  const MacroNode& node = *macro.node;
  const size_t count = node.parameters.size();
  auto scope = make_scope(macro.scope, node.declared);
  std::vector<bool> used(arguments.named.size());
  const auto take_named = [&](const std::string& name) -> const Value* {
    for (size_t i = 0; i < used.size(); ++i) {
      if (used[i] || arguments.named[i].first != name) continue;
      used[i] = true;
      return &arguments.named[i].second;
    }
    return nullptr;
  };
  const Inside inside(*this, scope);
  for (size_t i = 0; i < count; ++i) {
    const std::string& name = node.parameters[i];
    const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : take_named(name);
    const size_t without_default = count - node.defaults.size();
    if (given != nullptr)
      scope->set(name, *given);
    else if (i >= without_default)
      scope->set(name, evaluate(*node.defaults[i - without_default]));
    else
      scope->set(name, Value::undefined(fmt::format("parameter '{}' was not provided", name)));
  }
  if (node.uses_caller) {
    const Value* caller = take_named("caller");
    scope->set("caller", caller != nullptr ? *caller : Value::undefined("No caller defined"));
  }
  auto rest = std::make_shared<Dict>();
  for (size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    if (!node.uses_kwargs)
      fault("macro '{}' takes no keyword argument '{}'", node.name, arguments.named[i].first);
    rest->set(Value(arguments.named[i].first), arguments.named[i].second);
  }
  if (node.uses_kwargs) scope->set("kwargs", Value(DictPtr(rest)));
  const size_t num_bound = std::min(count, arguments.positional.size());
  std::vector<Value> more(arguments.positional.begin() + static_cast<std::ptrdiff_t>(num_bound),
                          arguments.positional.end());
  if (!node.uses_varargs && !more.empty())
    fault("macro '{}' takes not more than {} argument(s)", node.name, count);
  if (node.uses_varargs) scope->set("varargs", make_tuple(std::move(more)));
  return scope;
}

Value Interpreter::call_macro(const Macro& macro, const Arguments& arguments) {
  Capture capture(*this);
  const Inside inside(*this, bind(macro, arguments));
  run_block(macro.node->body);
  return Value(capture.take());
}

}  // namespace hearth::chat
