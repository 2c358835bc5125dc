// Filters that make text or numbers of one value. To add one: a function and a row of kFilters; its name in
// compare_templates.py, which compares it with jinja2.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "data/chat/filters.h"
#include "data/chat/number_literal.h"

namespace hearth::chat {

namespace {

Value upper_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  const Value text = call.as_text();
  return text_like(text, upper(text.text().bytes));
}

Value lower_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  const Value text = call.as_text();
  return text_like(text, lower(text.text().bytes));
}

Value capitalize_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  const Value text = call.as_text();
  return text_like(text, capitalize(text.text().bytes));
}

// Unlike str.title: only what follows white space, a hyphen or an opening bracket begins a word.
Value title_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  const Value text = call.as_text();
  std::string out;
  bool at_word_start = true;
  std::string word;
  const auto flush = [&] {
    if (word.empty()) return;
    const auto all = characters(word);
    out += upper(all[0]) + lower(word.substr(all[0].size()));
    word.clear();
  };
  for (const std::string_view character : characters(text.text().bytes)) {
    const bool ascii_break =
        character.size() == 1 && std::string_view("-({[<").find(character[0]) != std::string_view::npos;
    const bool breaks = ascii_break || strip(character, std::nullopt, Side::Both).empty();
    if (breaks != at_word_start) flush();
    at_word_start = breaks;
    word += character;
  }
  flush();
  return Value(std::move(out));
}

Value trim_filter(const FilterCall& call) {
  const Bound bound = call.bind({"chars"});
  const Value text = call.as_text();
  std::optional<std::string_view> chars;
  if (bound.has(0) && !bound.at(0).is_none()) {
    if (!bound.at(0).is_text()) fault("strip arg must be None or str");
    chars = bound.at(0).text().bytes;
  }
  return text_like(text, std::string(strip(text.text().bytes, chars, Side::Both)));
}

Value string_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  return call.as_text();
}

Value safe_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  return Value::markup(str(call.subject, call.budget));
}

Value escape_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  if (call.subject.is_markup()) return call.subject;
  return Value::markup(escape_html(str(call.subject, call.budget), call.budget));
}

Value replace_filter(const FilterCall& call) {
  const Bound bound = call.bind({"old", "new", "count"}, 2);
  const bool limited = bound.has(2) && !bound.at(2).is_none();
  const Int limit = limited ? as_integer(bound.at(2)) : Int{-1};
  const std::string text = str(call.subject, call.budget), from = str(bound.at(0), call.budget);
  const std::string to = str(bound.at(1), call.budget);
  return Value(
      replace(text, from, to, static_cast<int64_t>(std::clamp(limit, Int{-1}, Int{INT64_MAX})), call.budget));
}

Value indent_filter(const FilterCall& call) {
  const Bound bound = call.bind({"width", "first", "blank"});
  require_defined(call.subject);
  if (!call.subject.is_text())
    fault("can only concatenate str (not \"{}\") to str", call.subject.type_name());
  if (call.subject.is_markup()) fault("the filter 'indent' of markup is not supported");
  std::string indent(4, ' ');
  if (bound.has(0))
    indent =
        bound.at(0).is_text() ? bound.at(0).text().bytes : repeat(" ", as_integer(bound.at(0)), call.budget);
  const bool first = bound.flag(1, false), blank = bound.flag(2, false);
  // A line end is added, so that the last line counts as one even if it is empty.
  const auto lines = split_lines(call.subject.text().bytes + "\n", LineEnds::Drop);
  std::vector<std::string> out;
  for (const auto& line : lines)
    out.push_back(!out.empty() && (blank || !line.empty()) ? indent + line : line);
  return Value((first ? indent : "") + join(out, "\n", call.budget));
}

Value center_filter(const FilterCall& call) {
  const Bound bound = call.bind({"width"});
  Arguments arguments;
  arguments.positional.push_back(bound.get(0, Value(Int{80})));
  return call_method(Method(call.as_text(), "center"), arguments, call.budget);
}

Value truncate_filter(const FilterCall& call) {
  const Bound bound = call.bind({"length", "killwords", "end", "leeway"});
  const Int length_wanted = bound.has(0) ? as_integer(bound.at(0)) : Int{255};
  const std::string end = bound.has(2) ? str(bound.at(2), call.budget) : "...";
  const Int leeway = bound.has(3) && !bound.at(3).is_none() ? as_integer(bound.at(3)) : Int{5};
  const Int end_length = static_cast<Int>(count_characters(Value(end).text()));
  if (length_wanted < end_length)
    fault("expected length >= {}, got {}", to_text(end_length), to_text(length_wanted));
  if (leeway < 0) fault("expected leeway >= 0, got {}", to_text(leeway));
  if (length(call.subject) <= length_wanted + leeway) return call.subject;
  if (!call.subject.is_text()) fault("the filter 'truncate' cannot cut a '{}'", call.subject.type_name());
  std::string kept =
      slice_text(call.subject.text(), {std::nullopt, length_wanted - end_length, std::nullopt});
  if (!bound.flag(1, false)) kept = kept.substr(0, kept.rfind(' '));
  return text_like(call.subject, kept + end);
}

Value format_filter(const FilterCall& call) {
  if (!call.arguments.named.empty() && !call.arguments.positional.empty())
    fault("can't handle positional and keyword arguments at the same time");
  const Value text = call.as_text();
  if (text.is_markup()) fault("formatting of markup is not supported");
  if (call.arguments.named.empty())
    return Value(format_percent(text.text().bytes, make_tuple(call.arguments.positional), call.budget));
  auto dict = std::make_shared<Dict>();
  for (const auto& [name, value] : call.arguments.named) dict->set(Value(name), value);
  return Value(format_percent(text.text().bytes, Value(DictPtr(dict)), call.budget));
}

Value tojson_filter(const FilterCall& call) {
  const Bound bound = call.bind({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonOptions options;
  options.ensure_ascii = bound.flag(0, false);
  options.sort_keys = bound.flag(3, false);
  if (bound.has(1) && !bound.at(1).is_none()) {
    const Value& indent = bound.at(1);
    options.indent = indent.is_text() ? indent.text().bytes : repeat(" ", as_integer(indent), call.budget);
    options.item_separator = ",";
  }
  if (bound.has(2) && !bound.at(2).is_none()) {
    const auto separators = iterate(bound.at(2), call.budget);
    if (separators.size() != 2 || !separators[0].is_text() || !separators[1].is_text())
      fault("tojson: separators must be two texts");
    options.item_separator = separators[0].text().bytes;
    options.key_separator = separators[1].text().bytes;
  }
  return Value(to_json(call.subject, options, call.budget));
}

// Python's int(value), nothing where the value is no number.
std::optional<Int> to_integer(const Value& value, int64_t base) {
  if (value.is_integral()) return value.integer();
  if (value.is_float() && std::isfinite(value.number())) return float_to_integer(value.number());
  if (value.is_text()) return read_integer(value.text().bytes, base);
  return std::nullopt;
}

Value int_filter(const FilterCall& call) {
  const Bound bound = call.bind({"default", "base"});
  require_defined(call.subject);
  const Int base = bound.has(1) ? as_integer(bound.at(1)) : Int{10};
  if (base < 2 || base > 36) fault("int: the base {} is not supported", to_text(base));
  auto value = to_integer(call.subject, static_cast<int64_t>(base));
  if (!value && call.subject.is_text()) {
    const auto number = read_float(call.subject.text().bytes);
    if (number && std::isfinite(*number)) value = float_to_integer(*number);
  }
  return value ? Value(*value) : bound.get(0, Value(Int{0}));
}

Value float_filter(const FilterCall& call) {
  const Bound bound = call.bind({"default"});
  require_defined(call.subject);
  if (call.subject.is_number()) return Value(call.subject.number());
  if (call.subject.is_text()) {
    const auto number = read_float(call.subject.text().bytes);
    if (number) return Value(*number);
  }
  return bound.get(0, Value(0.0));
}

Value abs_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  require_defined(call.subject);
  if (!call.subject.is_number()) fault("bad operand type for abs(): '{}'", call.subject.type_name());
  if (call.subject.is_float()) return Value(std::fabs(call.subject.number()));
  return call.subject.integer() < 0 ? negative(call.subject) : Value(call.subject.integer());
}

Value round_filter(const FilterCall& call) {
  const Bound bound = call.bind({"precision", "method"});
  const Int digits = bound.has(0) ? as_integer(bound.at(0)) : Int{0};
  const std::string method = bound.has(1) ? str(bound.at(1), call.budget) : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    fault("method must be common, ceil or floor");
  require_defined(call.subject);
  if (!call.subject.is_number()) fault("type {} doesn't define __round__ method", call.subject.type_name());
  if (digits < -20 || digits > 300) fault("round: a precision of {} is not supported", to_text(digits));
  const auto precision = static_cast<int64_t>(digits);
  if (method != "common") {
    const Value scale = power(Value(Int{10}), Value(precision));
    const double scaled = multiply(call.subject, scale, call.budget).number();
    return divide(Value(float_to_integer(method == "ceil" ? std::ceil(scaled) : std::floor(scaled))), scale);
  }
  if (call.subject.is_float()) return Value(round_half_even(call.subject.number(), precision));
  if (precision < 0) fault("round: a negative precision of an int is not supported");
  return Value(call.subject.integer());
}

Value default_filter(const FilterCall& call) {
  const Bound bound = call.bind({"default_value", "boolean"});
  const bool replaced = call.subject.is_undefined() || (bound.flag(1, false) && !call.subject.truth());
  return replaced ? bound.get(0, Value(std::string())) : call.subject;
}

constexpr std::pair<std::string_view, FilterFunction> kFilters[] = {
    {"abs", abs_filter},         {"capitalize", capitalize_filter},
    {"center", center_filter},   {"d", default_filter},
    {"default", default_filter}, {"e", escape_filter},
    {"escape", escape_filter},   {"float", float_filter},
    {"format", format_filter},   {"indent", indent_filter},
    {"int", int_filter},         {"lower", lower_filter},
    {"replace", replace_filter}, {"round", round_filter},
    {"safe", safe_filter},       {"string", string_filter},
    {"title", title_filter},     {"tojson", tojson_filter},
    {"trim", trim_filter},       {"truncate", truncate_filter},
    {"upper", upper_filter},
};

}  // namespace

FilterFunction find_text_filter(const std::string& name) {
  const auto found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const auto& f) { return f.first == name; });
  return found == std::end(kFilters) ? nullptr : found->second;
}

}  // namespace hearth::chat
