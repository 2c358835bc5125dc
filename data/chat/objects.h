// The objects of a render that templates can hold: namespaces, loops, macros, functions and methods.
// Namespaces and scopes can refer to one another in circles; the interpreter that made them empties them at
// the end of the render.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/value.h"

namespace hearth::chat {

struct MacroNode;
struct Statement;

// The variables of one block of the template; lookups go on in the enclosing block.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> enclosing) : parent(std::move(enclosing)) {}
  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get())
      for (const auto& [key, value] : scope->variables)
        if (key == name) return &value;
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [key, old] : variables)
      if (key == name) return void(old = std::move(value));
    variables.emplace_back(name, std::move(value));
  }
  // A block sets few variables, so they are found by looking through them.
  std::vector<std::pair<std::string, Value>> variables;
  std::shared_ptr<Scope> parent;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Namespace : Object {
  Namespace() : Object(ObjectKind::Namespace) {}
  std::map<std::string, Value> attributes;
};

struct Macro : Object {
  Macro() : Object(ObjectKind::Macro) {}
  const MacroNode* node = nullptr;
  std::shared_ptr<Scope> scope;  // where it was defined
};

struct Loop : Object {
  Loop() : Object(ObjectKind::Loop) {}
  std::vector<Value> items;
  size_t index = 0;  // from 0
  int64_t level = 0;
  bool was_checked = false;
  std::vector<Value> checked;            // what `loop.changed` saw last
  const Statement* recursive = nullptr;  // the loop that `loop(...)` runs again
  std::shared_ptr<Scope> scope;          // recursive: around the loop
};

struct Function : Object {
  explicit Function(std::string function_name)
      : Object(ObjectKind::Function), name(std::move(function_name)) {}
  const std::string name;
};

struct Method : Object {
  Method(Value object, std::string method_name)
      : Object(ObjectKind::Method), self(std::move(object)), name(std::move(method_name)) {
    depth = checked_depth(self.depth() + 1);
  }
  const Value self;
  const std::string name;
};

struct Cycler : Object {
  explicit Cycler(std::vector<Value> all) : Object(ObjectKind::Cycler), items(std::move(all)) {
    for (const Value& item : items) depth = std::max(depth, checked_depth(item.depth() + 1));
  }
  const std::vector<Value> items;
  size_t position = 0;
};

struct Joiner : Object {
  explicit Joiner(Value text) : Object(ObjectKind::Joiner), separator(std::move(text)) {
    depth = checked_depth(separator.depth() + 1);
  }
  const Value separator;
  bool used = false;
};

// Python's binding of arguments to the parameters of a built-in callee: by position, then by name.
// Fault for too many, unknown, doubled or missing ones.
class Bound {
 public:
  Bound(std::string_view callee, const Arguments& arguments, std::initializer_list<const char*> parameters,
        size_t num_required = 0)
      : values_(parameters.size()) {
    if (arguments.positional.size() > parameters.size())
      fault("{}() takes at most {} arguments, got {}", callee, parameters.size(),
            arguments.positional.size());
    for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
    for (const auto& [name, value] : arguments.named) {
      size_t at = 0;
      while (at < parameters.size() && name != parameters.begin()[at]) ++at;
      if (at == parameters.size()) fault("{}() got an unexpected keyword argument '{}'", callee, name);
      if (values_[at] != nullptr) fault("{}() got multiple values for argument '{}'", callee, name);
      values_[at] = &value;
    }
    for (size_t i = 0; i < num_required; ++i)
      if (values_[i] == nullptr) fault("{}() missing required argument '{}'", callee, parameters.begin()[i]);
  }
  bool has(size_t i) const { return values_[i] != nullptr; }
  const Value& at(size_t i) const { return *values_[i]; }
  Value get(size_t i, Value otherwise) const { return has(i) ? at(i) : std::move(otherwise); }
  bool flag(size_t i, bool otherwise) const { return has(i) ? at(i).truth() : otherwise; }

 private:
  std::vector<const Value*> values_;
};

}  // namespace hearth::chat
