// The tests of templates (`value is name`). To add one: a function and a row of kTests; its name in
// compare_templates.py, which compares it with jinja2.
#include <algorithm>

#include "data/chat/filters.h"

namespace hearth::chat {

namespace {

struct TestCall {
  const std::string& name;
  const Value& subject;
  const Arguments& arguments;
  Budget& budget;

  // The one argument of a test that takes one.
  const Value& other() const {
    if (arguments.positional.size() != 1 || !arguments.named.empty())
      fault("the test '{}' takes one argument", name);
    return arguments.positional[0];
  }
};
using TestFunction = bool (*)(const TestCall& call);

bool remainder_is(const TestCall& call, const Value& divisor, Int wanted) {
  require_defined(call.subject);
  return equal(modulo(call.subject, divisor, call.budget), Value(wanted));
}

bool is_callable(const Value& value) {
  // An undefined value has a __call__ of its own, which raises.
  return value.is_undefined() ||
         (value.is_object() && !value.is(ObjectKind::Namespace) && !value.is(ObjectKind::Cycler));
}

bool is_sequence(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is_dict() || value.is(SequenceKind::List) ||
         value.is(SequenceKind::Tuple) || value.is(SequenceKind::Range);
}

bool is_true(const Value& value) {
  return value.is_bool() && value.boolean();
}
bool is_false(const Value& value) {
  return value.is_bool() && !value.boolean();
}

constexpr TestFunction kDefined = [](const TestCall& c) { return !c.subject.is_undefined(); };
constexpr TestFunction kEqual = [](const TestCall& c) { return equal(c.subject, c.other()); };
constexpr TestFunction kNotEqual = [](const TestCall& c) { return !equal(c.subject, c.other()); };
constexpr TestFunction kLess = [](const TestCall& c) { return less(c.subject, c.other()); };
constexpr TestFunction kGreater = [](const TestCall& c) { return less(c.other(), c.subject, ">"); };
constexpr TestFunction kAtMost = [](const TestCall& c) {
  return equal(c.subject, c.other()) || less(c.subject, c.other(), "<=");
};
constexpr TestFunction kAtLeast = [](const TestCall& c) {
  return equal(c.subject, c.other()) || less(c.other(), c.subject, ">=");
};

struct Row {
  std::string_view name;
  bool takes_argument;
  TestFunction test;
};

constexpr Row kTests[] = {
    {"!=", true, kNotEqual},
    {"<", true, kLess},
    {"<=", true, kAtMost},
    {"==", true, kEqual},
    {">", true, kGreater},
    {">=", true, kAtLeast},
    {"boolean", false, [](const TestCall& c) { return c.subject.is_bool(); }},
    {"callable", false, [](const TestCall& c) { return is_callable(c.subject); }},
    {"defined", false, kDefined},
    {"divisibleby", true, [](const TestCall& c) { return remainder_is(c, c.other(), 0); }},
    {"eq", true, kEqual},
    {"equalto", true, kEqual},
    {"escaped", false, [](const TestCall& c) { return c.subject.is_markup(); }},
    {"even", false, [](const TestCall& c) { return remainder_is(c, Value(Int{2}), 0); }},
    {"false", false, [](const TestCall& c) { return is_false(c.subject); }},
    {"filter", false,
     [](const TestCall& c) {
       return c.subject.is_text() && filter_support(c.subject.text().bytes) != Support::Unknown;
     }},
    {"float", false, [](const TestCall& c) { return c.subject.is_float(); }},
    {"ge", true, kAtLeast},
    {"greaterthan", true, kGreater},
    {"gt", true, kGreater},
    {"in", true, [](const TestCall& c) { return contains(c.other(), c.subject, c.budget); }},
    {"integer", false, [](const TestCall& c) { return c.subject.is_int(); }},
    {"iterable", false, [](const TestCall& c) { return iterable(c.subject); }},
    {"le", true, kAtMost},
    {"lessthan", true, kLess},
    {"lower", false, [](const TestCall& c) { return is_case(str(c.subject, c.budget), Case::Lower); }},
    {"lt", true, kLess},
    {"mapping", false, [](const TestCall& c) { return c.subject.is_dict(); }},
    {"ne", true, kNotEqual},
    {"none", false, [](const TestCall& c) { return c.subject.is_none(); }},
    {"number", false, [](const TestCall& c) { return c.subject.is_number(); }},
    {"odd", false, [](const TestCall& c) { return remainder_is(c, Value(Int{2}), 1); }},
    {"sameas", true, [](const TestCall& c) { return c.subject.same_as(c.other()); }},
    {"sequence", false, [](const TestCall& c) { return is_sequence(c.subject); }},
    {"string", false, [](const TestCall& c) { return c.subject.is_text(); }},
    {"test", false,
     [](const TestCall& c) {
       return c.subject.is_text() && test_support(c.subject.text().bytes) != Support::Unknown;
     }},
    {"true", false, [](const TestCall& c) { return is_true(c.subject); }},
    {"undefined", false, [](const TestCall& c) { return c.subject.is_undefined(); }},
    {"upper", false, [](const TestCall& c) { return is_case(str(c.subject, c.budget), Case::Upper); }},
};

const Row* find_test(std::string_view name) {
  const auto found =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const Row& row) { return row.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace

Support test_support(const std::string& name) {
  return find_test(name) != nullptr ? Support::Supported : Support::Unknown;
}

bool apply_test(const std::string& name, const Value& subject, const Arguments& arguments, Budget& budget) {
  const Row* row = find_test(name);
  if (row == nullptr) fault("No test named '{}' found.", name);
  budget.spend(1);
  if (subject.is_text()) budget.spend(subject.weight());
  if (!arguments.positional.empty()) budget.spend(comparison_weight(subject, arguments.positional[0]));
  if (!row->takes_argument && (!arguments.positional.empty() || !arguments.named.empty()))
    fault("the test '{}' takes no arguments", name);
  return row->test(TestCall{name, subject, arguments, budget});
}

}  // namespace hearth::chat
