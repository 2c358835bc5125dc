// Filters (`value | name(...)`) and tests (`value is name(...)`) of jinja2 3.1, by name.
#pragma once

#include <string>

#include "data/chat/operations.h"

namespace hearth::chat {

enum class Support {
  Supported,
  NotSupported,
  Unknown
};  // NotSupported: jinja2 has it, this interpreter has not
Support filter_support(const std::string& name);
Support test_support(const std::string& name);

// Fault where the name is not supported, or arguments do not fit.
Value apply_filter(const std::string& name, const Value& subject, const Arguments& arguments, Budget& budget);
bool apply_test(const std::string& name, const Value& subject, const Arguments& arguments, Budget& budget);

// What a filter gets.
struct FilterCall {
  const std::string& name;
  const Value& subject;
  const Arguments& arguments;
  Budget& budget;

  Bound bind(std::initializer_list<const char*> parameters, size_t num_required = 0) const {
    return Bound(name, arguments, parameters, num_required);
  }
  // The subject as jinja2's soft_str: text as it is, anything else as Python's str.
  Value as_text() const { return subject.is_text() ? subject : Value(str(subject, budget)); }
};
using FilterFunction = Value (*)(const FilterCall& call);

// The table's parts, each in the file of its name; null where the name is not there.
FilterFunction find_text_filter(const std::string& name);
FilterFunction find_sequence_filter(const std::string& name);

}  // namespace hearth::chat
