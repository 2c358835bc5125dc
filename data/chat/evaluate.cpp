// The expressions of the interpreter. Every node sets the line anew behind its operands, so that a Fault
// names the line of the operation.
#include "data/chat/interpreter.h"

namespace hearth::chat {

Value Interpreter::evaluate(const Expression& node) {
  const Deeper deeper(*this);
  line_ = node.line;
  budget_.spend(1);
  switch (node.kind) {
    case ExpressionKind::Constant:
      return node.constant;
    case ExpressionKind::Name:
      return evaluate_name(node.name);
    case ExpressionKind::Tuple:
    case ExpressionKind::List:
      return evaluate_sequence(node);
    case ExpressionKind::Dict:
      return evaluate_dict(node);
    case ExpressionKind::Slice:
      return evaluate_slice(node);
    case ExpressionKind::Call:
      return evaluate_call(node);
    case ExpressionKind::Filter:
      return evaluate_filter(node);
    case ExpressionKind::Test:
      return evaluate_test(node);
    case ExpressionKind::Concat:
      return evaluate_concat(node);
    case ExpressionKind::Compare:
      return evaluate_compare(node);
    case ExpressionKind::Conditional:
      return evaluate_conditional(node);
    default:
      break;
  }
  const Value first = evaluate(*node.children[0]);
  line_ = node.line;
  switch (node.kind) {
    case ExpressionKind::Attribute:
      return get_attribute(first, node.name);
    case ExpressionKind::Not:
      return Value(!first.truth());
    case ExpressionKind::Negative:
      return negative(first);
    case ExpressionKind::Positive:
      return positive(first);
    case ExpressionKind::And:
      return first.truth() ? evaluate(*node.children[1]) : first;
    case ExpressionKind::Or:
      return first.truth() ? first : evaluate(*node.children[1]);
    default:
      break;
  }
  const Value second = evaluate(*node.children[1]);
  line_ = node.line;
  switch (node.kind) {
    case ExpressionKind::Item:
      budget_.spend(second.weight() + (first.is_text() ? first.weight() : 0));
      return get_item(first, second);
    case ExpressionKind::Add:
      return add(first, second, budget_);
    case ExpressionKind::Subtract:
      return subtract(first, second);
    case ExpressionKind::Multiply:
      return multiply(first, second, budget_);
    case ExpressionKind::Divide:
      return divide(first, second);
    case ExpressionKind::FloorDivide:
      return floor_divide(first, second);
    case ExpressionKind::Modulo:
      return modulo(first, second, budget_);
    default:
      return power(first, second);
  }
}

// Blocks first, then what the caller gave, then the functions of every template.
Value Interpreter::evaluate_name(const std::string& name) {
  const Value* found = scope_->find(name);
  if (found == nullptr) found = variables_.find(name);
  if (found != nullptr) return *found;
  if (is_function(name)) return Value(ObjectPtr(std::make_shared<Function>(name)));
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Value Interpreter::evaluate_sequence(const Expression& node) {
  std::vector<Value> items;
  items.reserve(node.children.size());
  for (const auto& child : node.children) items.push_back(evaluate(*child));
  return node.kind == ExpressionKind::List ? make_list(std::move(items)) : make_tuple(std::move(items));
}

Value Interpreter::evaluate_dict(const Expression& node) {
  auto dict = std::make_shared<Dict>();
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    const Value key = evaluate(*node.children[i]);
    const Value value = evaluate(*node.children[i + 1]);
    line_ = node.line;
    budget_.spend(key.weight());
    dict->set(key, value);
  }
  return Value(DictPtr(std::move(dict)));
}

Value Interpreter::evaluate_slice(const Expression& node) {
  const Value subject = evaluate(*node.children[0]);
  Slice slice;
  std::optional<Int>* const parts[] = {&slice.start, &slice.stop, &slice.step};
  bool fits = true;
  for (size_t i = 0; i < 3; ++i) {
    if (!node.children[i + 1]) continue;
    const Value part = evaluate(*node.children[i + 1]);
    if (part.is_integral())
      *parts[i] = part.integer();
    else
      fits = fits && part.is_none();
  }
  line_ = node.line;
  require_defined(subject);
  if (!fits) fault("slice indices must be integers or None or have an __index__ method");
  return get_slice(subject, slice, budget_);
}

Value Interpreter::evaluate_concat(const Expression& node) {
  std::vector<std::string> parts;
  parts.reserve(node.children.size());
  for (const auto& child : node.children) parts.push_back(str(evaluate(*child), budget_));
  line_ = node.line;
  return Value(join(parts, "", budget_));
}

Value Interpreter::evaluate_compare(const Expression& node) {
  Value left = evaluate(*node.children[0]);
  for (size_t i = 0; i < node.comparisons.size(); ++i) {
    Value right = evaluate(*node.children[i + 1]);
    line_ = node.line;
    if (!compare(node.comparisons[i], left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

bool Interpreter::compare(Comparison comparison, const Value& a, const Value& b) {
  budget_.spend(comparison_weight(a, b));
  const bool ordered = comparison != Comparison::Equal && comparison != Comparison::NotEqual &&
                       comparison != Comparison::In && comparison != Comparison::NotIn;
  if (ordered) require_defined(a);  // before b, whichever way round they are compared
  switch (comparison) {
    case Comparison::Equal:
      return equal(a, b);
    case Comparison::NotEqual:
      return !equal(a, b);
    case Comparison::Less:
      return less(a, b);
    case Comparison::LessEqual:
      return less(a, b, "<=") || equal(a, b);
    case Comparison::Greater:
      return less(b, a, ">");
    case Comparison::GreaterEqual:
      return less(b, a, ">=") || equal(a, b);
    case Comparison::In:
      return contains(b, a, budget_);
    case Comparison::NotIn:
      return !contains(b, a, budget_);
  }
  return false;
}

Value Interpreter::evaluate_conditional(const Expression& node) {
  if (evaluate(*node.children[0]).truth()) return evaluate(*node.children[1]);
  if (node.children[2]) return evaluate(*node.children[2]);
  return Value::undefined(fmt::format(
      "the inline if-expression on line {} evaluated to false and no else section was defined.", node.line));
}

Arguments Interpreter::evaluate_arguments(const CallNode& call) {
  Arguments arguments;
  for (const auto& child : call.positional) arguments.positional.push_back(evaluate(*child));
  for (const auto& [name, child] : call.named) arguments.named.emplace_back(name, evaluate(*child));
  if (call.star) {
    for (Value& item : iterate(evaluate(*call.star), budget_))
      arguments.positional.push_back(std::move(item));
  }
  if (call.double_star) {
    const Value more = evaluate(*call.double_star);
    if (!more.is_dict()) fault("argument after ** must be a mapping, not {}", more.type_name());
    for (const auto& [name, value] : more.dict().entries()) {
      if (!name.is_text()) fault("keywords must be strings");
      for (const auto& [other, unused] : arguments.named)
        if (other == name.text().bytes) fault("got multiple values for keyword argument '{}'", other);
      arguments.named.emplace_back(name.text().bytes, value);
    }
  }
  return arguments;
}

Value Interpreter::evaluate_call(const Expression& node) {
  const Value callee = evaluate(*node.children[0]);
  const Arguments arguments = evaluate_arguments(node.call);
  line_ = node.line;
  return call(callee, arguments);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  require_defined(callee);
  if (!callee.is_object()) fault("'{}' object is not callable", callee.type_name());
  Object& object = *callee.object();
  switch (object.kind) {
    case ObjectKind::Macro:
      return call_macro(static_cast<const Macro&>(object), arguments);
    case ObjectKind::Loop:
      return call_loop(static_cast<const Loop&>(object), arguments);
    case ObjectKind::Function:
      return call_function(static_cast<const Function&>(object).name, arguments, budget_, circles_);
    case ObjectKind::Method:
      return call_method(static_cast<const Method&>(object), arguments, budget_);
    case ObjectKind::Joiner: {
      auto& joiner = static_cast<Joiner&>(object);
      return std::exchange(joiner.used, true) ? joiner.separator : Value(std::string());
    }
    default:
      fault("'{}' object is not callable", callee.type_name());
  }
}

Value Interpreter::evaluate_filter(const Expression& node) {
  const Value subject = node.children[0] ? evaluate(*node.children[0]) : filter_input_;
  const Arguments arguments = evaluate_arguments(node.call);
  line_ = node.line;
  return apply_filter(node.name, subject, arguments, budget_);
}

Value Interpreter::evaluate_test(const Expression& node) {
  const Value subject = evaluate(*node.children[0]);
  const Arguments arguments = evaluate_arguments(node.call);
  line_ = node.line;
  return Value(apply_test(node.name, subject, arguments, budget_));
}

}  // namespace hearth::chat
