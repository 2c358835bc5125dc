// Filters over several items. To add one: a function and a row of kFilters; its name in compare_templates.py,
// which compares it with jinja2. Python's lazy ones (map, select ...) give generators whose items are made at
// once.
#include <algorithm>

#include "data/chat/filters.h"

namespace hearth::chat {

namespace {

// ---- attributes of items, by a path such as "function.name" ----

struct Path {
  std::vector<Value> parts;
  std::optional<Value> otherwise;  // instead of undefined
};

Path path_of(const Value& attribute) {
  Path path;
  if (attribute.is_integral()) {
    path.parts.push_back(attribute);
  } else if (attribute.is_text()) {
    for (const auto& part : split(attribute.text().bytes, ".", -1)) {
      const bool number =
          !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
      path.parts.push_back(number ? Value(static_cast<Int>(std::stol(part))) : Value(part));
    }
  } else if (!attribute.is_none()) {
    fault("an attribute's name must be a text or an integer, not {}", attribute.type_name());
  }
  return path;
}

Value follow(Value value, const Path& path) {
  for (const Value& part : path.parts) {
    value = get_item(value, part);
    if (value.is_undefined() && path.otherwise) value = *path.otherwise;
  }
  return value;
}

// Sorting and comparing ignore the case of texts unless told otherwise.
Value folded(const Value& value, bool case_sensitive) {
  return value.is_text() && !case_sensitive ? Value(lower(value.text().bytes)) : value;
}

// ---- one value out of many ----

Value length_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  return Value(length(call.subject));
}

Value first_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  if (call.subject.is(SequenceKind::Generator)) {
    Sequence& generator = *call.subject.sequence();
    if (generator.taken < generator.items.size()) return generator.items[generator.taken++];
  } else {
    const auto items = iterate(call.subject, call.budget);
    if (!items.empty()) return items.front();
  }
  return Value::undefined("No first item, sequence was empty.");
}

Value last_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  if (call.subject.is(SequenceKind::Generator))
    fault("'{}' object is not reversible", call.subject.type_name());
  const auto items = iterate(call.subject, call.budget);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value join_filter(const FilterCall& call) {
  const Bound bound = call.bind({"d", "attribute"});
  const std::string separator = bound.has(0) ? str(bound.at(0), call.budget) : "";
  const Path path = bound.has(1) ? path_of(bound.at(1)) : Path{};
  std::vector<std::string> parts;
  for (const Value& item : iterate(call.subject, call.budget))
    parts.push_back(str(follow(item, path), call.budget));
  return Value(join(parts, separator, call.budget));
}

Value sum_filter(const FilterCall& call) {
  const Bound bound = call.bind({"attribute", "start"});
  const Path path = bound.has(0) ? path_of(bound.at(0)) : Path{};
  Value sum = bound.get(1, Value(Int{0}));
  if (sum.is_text()) fault("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : iterate(call.subject, call.budget))
    sum = add(sum, follow(item, path), call.budget);
  return sum;
}

Value extreme(const FilterCall& call) {
  const Bound bound = call.bind({"case_sensitive", "attribute"});
  const bool smallest = call.name == "min", case_sensitive = bound.flag(0, false);
  const auto items = iterate(call.subject, call.budget);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  for (const Value& item : items) call.budget.spend(item.weight());
  const Path path = bound.has(1) ? path_of(bound.at(1)) : Path{};
  const auto key = [&](const Value& item) { return folded(follow(item, path), case_sensitive); };
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i) {
    const bool better =
        smallest ? less(key(items[i]), key(items[best])) : less(key(items[best]), key(items[i]), ">");
    if (better) best = i;
  }
  return items[best];
}

// ---- sequences ----

Value list_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  return make_list(iterate(call.subject, call.budget));
}

Value reverse_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  if (call.subject.is_text())
    return text_like(call.subject, slice_text(call.subject.text(), {std::nullopt, std::nullopt, Int{-1}}));
  auto items = iterate(call.subject, call.budget);
  std::reverse(items.begin(), items.end());
  if (call.subject.is(SequenceKind::Generator)) return make_list(std::move(items));
  return make_generator(std::move(items),
                        call.subject.is(SequenceKind::List) ? "list_reverseiterator" : "reversed");
}

Value items_filter(const FilterCall& call) {
  const Bound none = call.bind({});
  if (call.subject.is_undefined()) return make_generator({});
  if (!call.subject.is_dict()) fault("Can only get item pairs from a mapping.");
  std::vector<Value> items;
  call.budget.spend(call.subject.dict().size());
  for (const auto& [key, value] : call.subject.dict().entries()) items.push_back(make_tuple({key, value}));
  return make_generator(std::move(items));
}

// A merge sort, which like Python's stays sensible whatever `before` answers.
template <class Before>
void sort_items(std::vector<Value>& items, bool reverse, Budget& budget, Before before) {
  for (const Value& item : items) budget.spend(item.weight() * 20);
  // Equal items keep their order either way, so a reversed sort is not a reversed order.
  std::stable_sort(items.begin(), items.end(),
                   [&](const Value& a, const Value& b) { return reverse ? before(b, a) : before(a, b); });
}

Value sort_filter(const FilterCall& call) {
  const Bound bound = call.bind({"reverse", "case_sensitive", "attribute"});
  const bool case_sensitive = bound.flag(1, false);
  std::vector<Path> paths;
  if (bound.has(2) && bound.at(2).is_text()) {
    for (const auto& one : split(bound.at(2).text().bytes, ",", -1)) paths.push_back(path_of(Value(one)));
  } else {
    paths.push_back(bound.has(2) ? path_of(bound.at(2)) : Path{});
  }
  auto items = iterate(call.subject, call.budget);
  sort_items(items, bound.flag(0, false), call.budget, [&](const Value& a, const Value& b) {
    for (const Path& path : paths) {
      const Value x = folded(follow(a, path), case_sensitive), y = folded(follow(b, path), case_sensitive);
      if (!equal(x, y)) return less(x, y);
    }
    return false;
  });
  return make_list(std::move(items));
}

Value dictsort_filter(const FilterCall& call) {
  const Bound bound = call.bind({"case_sensitive", "by", "reverse"});
  const std::string by = bound.has(1) ? str(bound.at(1), call.budget) : "key";
  if (by != "key" && by != "value") fault("You can only sort by either \"key\" or \"value\"");
  require_defined(call.subject);
  if (!call.subject.is_dict()) fault("'{}' has no attribute 'items'", call.subject.described());
  const bool case_sensitive = bound.flag(0, false);
  const size_t at = by == "key" ? 0 : 1;
  std::vector<Value> items;
  for (const auto& [key, value] : call.subject.dict().entries()) items.push_back(make_tuple({key, value}));
  sort_items(items, bound.flag(2, false), call.budget, [&](const Value& a, const Value& b) {
    return less(folded(a.sequence()->items[at], case_sensitive),
                folded(b.sequence()->items[at], case_sensitive));
  });
  return make_list(std::move(items));
}

Value unique_filter(const FilterCall& call) {
  const Bound bound = call.bind({"case_sensitive", "attribute"});
  const Path path = bound.has(1) ? path_of(bound.at(1)) : Path{};
  Dict seen;
  std::vector<Value> out;
  for (const Value& item : iterate(call.subject, call.budget)) {
    const Value key = folded(follow(item, path), bound.flag(0, false));
    call.budget.spend(key.weight());
    if (seen.find(key) != nullptr) continue;
    seen.set(key, Value());
    out.push_back(item);
  }
  return make_generator(std::move(out));
}

// ---- filters that apply others ----

// The name in the first argument and the arguments behind it.
struct Inner {
  std::string name;
  Arguments arguments;
};
Inner inner_of(const Arguments& arguments, size_t name_at) {
  const Value& name = arguments.positional[name_at];
  if (!name.is_text()) fault("expected the name of a filter or test, got {}", name.type_name());
  Inner inner{name.text().bytes, {{}, arguments.named}};
  inner.arguments.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(name_at) + 1,
                                    arguments.positional.end());
  return inner;
}

Value map_filter(const FilterCall& call) {
  if (!call.subject.truth()) return make_generator({});  // none is as good as an empty list
  const auto items = iterate(call.subject, call.budget);
  std::vector<Value> out;
  if (call.arguments.positional.empty()) {
    const Bound bound = call.bind({"attribute", "default"});
    if (!bound.has(0)) fault("map requires a filter argument");
    Path path = path_of(bound.at(0));
    if (bound.has(1) && !bound.at(1).is_none()) path.otherwise = bound.at(1);
    for (const Value& item : items) out.push_back(follow(item, path));
    return make_generator(std::move(out));
  }
  const Inner inner = inner_of(call.arguments, 0);
  if (filter_support(inner.name) == Support::Unknown) fault("No filter named '{}'.", inner.name);
  for (const Value& item : items) out.push_back(apply_filter(inner.name, item, inner.arguments, call.budget));
  return make_generator(std::move(out));
}

// select, reject, selectattr, rejectattr
Value select_filter(const FilterCall& call) {
  if (!call.subject.truth()) return make_generator({});
  const bool by_attribute = call.name == "selectattr" || call.name == "rejectattr";
  const bool wanted = call.name == "select" || call.name == "selectattr";
  const size_t name_at = by_attribute ? 1 : 0;
  if (by_attribute && call.arguments.positional.empty()) fault("Missing parameter for attribute name");
  const Path path = by_attribute ? path_of(call.arguments.positional[0]) : Path{};
  std::optional<Inner> test;
  if (call.arguments.positional.size() > name_at) test = inner_of(call.arguments, name_at);
  if (test && test_support(test->name) == Support::Unknown) fault("No test named '{}'.", test->name);
  std::vector<Value> out;
  for (const Value& item : iterate(call.subject, call.budget)) {
    const Value tested = follow(item, path);
    const bool passes = test ? apply_test(test->name, tested, test->arguments, call.budget) : tested.truth();
    if (passes == wanted) out.push_back(item);
  }
  return make_generator(std::move(out));
}

constexpr std::pair<std::string_view, FilterFunction> kFilters[] = {
    {"count", length_filter},
    {"dictsort", dictsort_filter},
    {"first", first_filter},
    {"items", items_filter},
    {"join", join_filter},
    {"last", last_filter},
    {"length", length_filter},
    {"list", list_filter},
    {"map", map_filter},
    {"max", extreme},
    {"min", extreme},
    {"reject", select_filter},
    {"rejectattr", select_filter},
    {"reverse", reverse_filter},
    {"select", select_filter},
    {"selectattr", select_filter},
    {"sort", sort_filter},
    {"sum", sum_filter},
    {"unique", unique_filter},
};

}  // namespace

FilterFunction find_sequence_filter(const std::string& name) {
  const auto found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const auto& f) { return f.first == name; });
  return found == std::end(kFilters) ? nullptr : found->second;
}

}  // namespace hearth::chat
