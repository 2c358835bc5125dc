// The functions that every template can call: range, namespace, dict, cycler, joiner, raise_exception,
// strftime_now.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/chat/operations.h"

namespace hearth::chat {

// What a render made that can refer to itself in a circle; emptied at the end.
class Circles {
 public:
  ~Circles() {
    for (const auto& one : namespaces_) one->attributes.clear();
    for (const auto& scope : scopes_) scope->variables.clear();
  }
  void add(std::shared_ptr<Namespace> one) { namespaces_.push_back(std::move(one)); }
  void add(std::shared_ptr<Scope> scope) {
    if (scopes_.empty() || scopes_.back() != scope) scopes_.push_back(std::move(scope));
  }

 private:
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Scope>> scopes_;
};

bool is_function(const std::string& name);
Value call_function(const std::string& name, const Arguments& arguments, Budget& budget, Circles& circles);
// Fault for a name that begins with an underscore, which transformers refuses.
void set_namespace_attribute(Namespace& target, const std::string& name, Value value);

}  // namespace hearth::chat
