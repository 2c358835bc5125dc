#include "data/chat/functions.h"

#include <algorithm>
#include <array>
#include <ctime>

#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

constexpr std::string_view kNames[] = {"cycler",          "dict",  "joiner",      "lipsum", "namespace",
                                       "raise_exception", "range", "strftime_now"};
constexpr Int kMaxRange = 100000;  // of jinja2's sandbox

Value make_range(const Arguments& arguments, Budget& budget) {
  if (!arguments.named.empty()) fault("range() takes no keyword arguments");
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3) fault("range expected 1 to 3 arguments, got {}", count);
  std::array<Int, 3> values = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) values[count == 1 ? 1 : i] = as_integer(arguments.positional[i]);
  const auto [start, stop, step] = values;
  if (step == 0) fault("range() arg 3 must not be zero");
  constexpr Int kLimit = Int{1} << 100;
  if (std::max({start, stop, step}) > kLimit || std::min({start, stop, step}) < -kLimit)
    fault("Range too big.");
  const Int distance = step > 0 ? stop - start : start - stop, stride = step > 0 ? step : -step;
  const Int size = distance <= 0 ? Int{0} : (distance - 1) / stride + 1;
  if (size > kMaxRange)
    fault("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", to_text(kMaxRange));
  budget.spend(static_cast<uint64_t>(size));
  std::vector<Value> items;
  for (Int i = 0; i < size; ++i) items.emplace_back(start + i * step);
  const Value range = make_sequence(SequenceKind::Range, std::move(items));
  range.sequence()->type =
      fmt::format("range({}, {}{})", to_text(start), to_text(stop), step == 1 ? "" : ", " + to_text(step));
  return range;
}

// Python's dict(*positional, **named).
Dict make_dict(const Arguments& arguments, Budget& budget) {
  if (arguments.positional.size() > 1)
    fault("dict expected at most 1 argument, got {}", arguments.positional.size());
  Dict dict;
  if (!arguments.positional.empty() && arguments.positional[0].is_dict()) {
    dict = arguments.positional[0].dict();
  } else if (!arguments.positional.empty()) {
    for (const Value& pair : iterate(arguments.positional[0], budget)) {
      const auto items = iterate(pair, budget);
      if (items.size() != 2)
        fault("dictionary update sequence element has length {}; 2 is required", items.size());
      budget.spend(items[0].weight());
      dict.set(items[0], items[1]);
    }
  }
  budget.spend(dict.size() + arguments.named.size());
  for (const auto& [name, value] : arguments.named) dict.set(Value(name), value);
  return dict;
}

Value make_namespace(const Arguments& arguments, Budget& budget, Circles& circles) {
  auto made = std::make_shared<Namespace>();
  const Dict dict = make_dict(arguments, budget);
  for (const auto& [name, value] : dict.entries()) {
    if (!name.is_text())
      fault("the name of a namespace's attribute must be a text, not {}", name.type_name());
    set_namespace_attribute(*made, name.text().bytes, value);
  }
  circles.add(made);
  return Value(ObjectPtr(made));
}

Value time_text(const Arguments& arguments) {
  const Bound bound("strftime_now", arguments, {"format"}, 1);
  if (!bound.at(0).is_text()) fault("strftime() argument 1 must be str, not {}", bound.at(0).type_name());
  const std::string& format = bound.at(0).text().bytes;
  if (format.size() > 1000) fault("strftime_now: a format of {} bytes is too long", format.size());
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 20000> buffer;
  const size_t size = std::strftime(buffer.data(), buffer.size(), format.c_str(), &local);
  return Value(unicode::replace_invalid_utf8(std::string_view(buffer.data(), size)));
}

Value make_cycler(const Arguments& arguments) {
  if (arguments.positional.empty()) fault("at least one item has to be provided");
  if (!arguments.named.empty()) fault("cycler() takes no keyword arguments");
  return Value(ObjectPtr(std::make_shared<Cycler>(arguments.positional)));
}

}  // namespace

bool is_function(const std::string& name) {
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

Value call_function(const std::string& name, const Arguments& arguments, Budget& budget, Circles& circles) {
  if (name == "range") return make_range(arguments, budget);
  if (name == "namespace") return make_namespace(arguments, budget, circles);
  if (name == "dict") return Value(std::make_shared<const Dict>(make_dict(arguments, budget)));
  if (name == "strftime_now") return time_text(arguments);
  if (name == "cycler") return make_cycler(arguments);
  if (name == "joiner") {
    const Bound bound(name, arguments, {"sep"});
    return Value(ObjectPtr(std::make_shared<Joiner>(bound.get(0, Value(std::string(", "))))));
  }
  if (name == "raise_exception") {
    const Bound bound(name, arguments, {"message"}, 1);
    throw Fault{str(bound.at(0), budget)};
  }
  fault("the function '{}' is not supported", name);
}

void set_namespace_attribute(Namespace& target, const std::string& name, Value value) {
  if (!name.empty() && name[0] == '_')
    fault(
        "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'. Please "
        "rename the attribute.",
        name);
  target.attributes[name] = std::move(value);
}

}  // namespace hearth::chat
