// The methods of str, list, tuple, dict, loop and cycler. To add one: a case here; lookup.cpp has all names.
#include <algorithm>

#include "data/chat/operations.h"
#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

[[noreturn]] void not_supported(const Method& method) {
  fault("the method '{}' of '{}' is not supported", method.name, method.self.type_name());
}

const std::string& text_argument(const Value& value) {
  require_defined(value);
  if (!value.is_text()) fault("expected a str, got '{}'", value.type_name());
  return value.text().bytes;
}

std::optional<std::string_view> optional_text(const Bound& bound, size_t i) {
  if (!bound.has(i) || bound.at(i).is_none()) return std::nullopt;
  return text_argument(bound.at(i));
}

int64_t limit_of(const Bound& bound, size_t i) {
  if (!bound.has(i)) return -1;
  const Int value = as_integer(bound.at(i));
  return value < 0 ? -1 : static_cast<int64_t>(std::min(value, Int{INT64_MAX}));
}

Value list_like(const Value& model, std::vector<std::string> parts, Budget& budget) {
  budget.spend(parts.size());
  std::vector<Value> items;
  items.reserve(parts.size());
  for (auto& part : parts) items.push_back(text_like(model, std::move(part)));
  return make_list(std::move(items));
}

// The part [start, end) that find, count, startswith ... look at, and how many characters stand before it.
struct Part {
  std::string text;
  Int begin = 0;
  bool outside = false;  // start lies behind the end of the text: nothing is found there, not even ""
};
Part part_of(const Value& self, const Bound& bound, size_t start_at) {
  const auto index = [&](size_t i) -> std::optional<Int> {
    if (!bound.has(i) || bound.at(i).is_none()) return std::nullopt;
    return as_integer(bound.at(i));
  };
  const Slice slice{index(start_at), index(start_at + 1), std::nullopt};
  Part part{slice_text(self.text(), slice), 0, false};
  if (!slice.start) return part;
  const Int size = static_cast<Int>(count_characters(self.text()));
  part.outside = *slice.start > size;
  part.begin = *slice.start < 0 ? std::max(Int{0}, *slice.start + size) : *slice.start;
  return part;
}

Value find(const Method& method, const Arguments& arguments, bool from_right, bool must_exist) {
  const Bound bound(method.name, arguments, {"sub", "start", "end"}, 1);
  const Part part = part_of(method.self, bound, 1);
  const std::string& sought = text_argument(bound.at(0));
  const size_t at = part.outside ? std::string::npos
                    : from_right ? part.text.rfind(sought)
                                 : find_text(part.text, sought);
  if (at != std::string::npos)
    return Value(part.begin + static_cast<Int>(count_characters(Value(part.text.substr(0, at)).text())));
  if (must_exist) fault("substring not found");
  return Value(Int{-1});
}

Value count(const Method& method, const Arguments& arguments) {
  const Bound bound(method.name, arguments, {"sub", "start", "end"}, 1);
  const Part part = part_of(method.self, bound, 1);
  const std::string& sought = text_argument(bound.at(0));
  if (part.outside) return Value(Int{0});
  if (sought.empty()) return Value(Int{1} + static_cast<Int>(count_characters(Value(part.text).text())));
  Int found = 0;
  for (size_t at = 0; (at = find_text(part.text, sought, at)) != std::string::npos; at += sought.size())
    ++found;
  return Value(found);
}

Value starts_or_ends(const Method& method, const Arguments& arguments, bool at_start) {
  const Bound bound(method.name, arguments, {"prefix", "start", "end"}, 1);
  const Part part = part_of(method.self, bound, 1);
  const auto matches = [&](const std::string& affix) {
    if (part.outside || affix.size() > part.text.size()) return false;
    return part.text.compare(at_start ? 0 : part.text.size() - affix.size(), affix.size(), affix) == 0;
  };
  const Value& affix = bound.at(0);
  require_defined(affix);
  if (affix.is(SequenceKind::Tuple)) {
    const auto& all = affix.sequence()->items;
    return Value(
        std::any_of(all.begin(), all.end(), [&](const Value& one) { return matches(text_argument(one)); }));
  }
  if (!affix.is_text())
    fault("{} first arg must be str or a tuple of str, not {}", method.name, affix.type_name());
  return Value(matches(affix.text().bytes));
}

Value partition(const Method& method, const Arguments& arguments, bool from_right) {
  const Bound bound(method.name, arguments, {"sep"}, 1);
  const std::string &text = method.self.text().bytes, &separator = text_argument(bound.at(0));
  if (separator.empty()) fault("empty separator");
  const size_t at = from_right ? text.rfind(separator) : find_text(text, separator);
  std::vector<std::string> parts = {text, "", ""};
  if (at == std::string::npos && from_right) std::swap(parts[0], parts[2]);
  if (at != std::string::npos) parts = {text.substr(0, at), separator, text.substr(at + separator.size())};
  std::vector<Value> items;
  for (auto& part : parts) items.push_back(text_like(method.self, std::move(part)));
  return make_tuple(std::move(items));
}

Value padded(const Method& method, const Arguments& arguments, Budget& budget) {
  const Bound bound(method.name, arguments, {"width", "fillchar"}, 1);
  const std::string fill = bound.has(1) ? text_argument(bound.at(1)) : " ";
  if (count_characters(Value(fill).text()) != 1)
    fault("The fill character must be exactly one character long");
  const Int width = as_integer(bound.at(0)), size = static_cast<Int>(count_characters(method.self.text()));
  const Int missing = std::max(Int{0}, width - size);
  // Python's centre leans left or right by the parities of both.
  const Int centre_left = missing / 2 + (missing & width & 1);
  const Int left = method.name == "ljust" ? 0 : method.name == "rjust" ? missing : centre_left;
  return text_like(method.self, repeat(fill, left, budget) + method.self.text().bytes +
                                    repeat(fill, missing - left, budget));
}

Value zero_filled(const Method& method, const Arguments& arguments, Budget& budget) {
  const Bound bound(method.name, arguments, {"width"}, 1);
  const std::string& text = method.self.text().bytes;
  const Int missing = as_integer(bound.at(0)) - static_cast<Int>(count_characters(method.self.text()));
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return text_like(method.self, text.substr(0, sign) + repeat("0", missing, budget) + text.substr(sign));
}

// Whether there are characters, all of them of one of the classes.
Value all_of_class(const Method& method, std::initializer_list<CharacterClass> classes) {
  const auto all = characters(method.self.text().bytes);
  const auto matches = [&](std::string_view character) {
    const char32_t c = unicode::decode_at(character, 0);
    return std::any_of(classes.begin(), classes.end(), [&](CharacterClass one) { return is_class(c, one); });
  };
  return Value(!all.empty() && std::all_of(all.begin(), all.end(), matches));
}

Value join_all(const Method& method, const Arguments& arguments, Budget& budget) {
  const Bound bound(method.name, arguments, {"iterable"}, 1);
  std::vector<std::string> parts;
  for (const Value& item : iterate(bound.at(0), budget)) {
    if (!item.is_text())
      fault("sequence item {}: expected str instance, {} found", parts.size(), item.type_name());
    const bool escaped = method.self.is_markup() && !item.is_markup();
    parts.push_back(escaped ? escape_html(item.text().bytes, budget) : item.text().bytes);
  }
  return text_like(method.self, join(parts, method.self.text().bytes, budget));
}

Value replaced(const Method& method, const Arguments& arguments, Budget& budget) {
  const Bound bound(method.name, arguments, {"old", "new", "count"}, 2);
  std::string to = text_argument(bound.at(1));
  if (method.self.is_markup() && !bound.at(1).is_markup()) to = escape_html(to, budget);
  return text_like(method.self, replace(method.self.text().bytes, text_argument(bound.at(0)), to,
                                        limit_of(bound, 2), budget));
}

Value removed_affix(const Method& method, const Arguments& arguments, bool at_start) {
  const Bound bound(method.name, arguments, {"affix"}, 1);
  const std::string &text = method.self.text().bytes, &affix = text_argument(bound.at(0));
  if (affix.size() > text.size()) return method.self;
  const size_t at = at_start ? 0 : text.size() - affix.size();
  if (text.compare(at, affix.size(), affix) != 0) return method.self;
  return text_like(method.self, at_start ? text.substr(affix.size()) : text.substr(0, at));
}

std::optional<Value> changed_case(const Method& method) {
  const std::string &name = method.name, &text = method.self.text().bytes;
  if (name == "upper") return text_like(method.self, upper(text));
  if (name == "lower") return text_like(method.self, lower(text));
  if (name == "title") return text_like(method.self, title(text));
  if (name == "capitalize") return text_like(method.self, capitalize(text));
  if (name == "swapcase") return text_like(method.self, swap_case(text));
  return std::nullopt;
}

std::optional<Value> asked_class(const Method& method) {
  const std::string &name = method.name, &text = method.self.text().bytes;
  if (name == "isupper") return Value(is_case(text, Case::Upper));
  if (name == "islower") return Value(is_case(text, Case::Lower));
  if (name == "isspace") return Value(!text.empty() && strip(text, std::nullopt, Side::Both).empty());
  if (name == "isascii") return Value(method.self.text().ascii);
  using enum CharacterClass;
  if (name == "isalpha") return all_of_class(method, {Alphabetic});
  if (name == "isdecimal") return all_of_class(method, {Decimal});
  if (name == "isdigit") return all_of_class(method, {Digit});
  if (name == "isnumeric") return all_of_class(method, {Numeric});
  if (name == "isalnum") return all_of_class(method, {Alphabetic, Decimal, Digit, Numeric});
  return std::nullopt;
}

Value call_text_method(const Method& method, const Arguments& arguments, Budget& budget) {
  const std::string &name = method.name, &text = method.self.text().bytes;
  // Searching from the right, and case, cost more than copying.
  budget.spend(1 + text.size() / 4);
  for (const Value& argument : arguments.positional) budget.spend(argument.weight());
  if (name[0] == 'r' && !arguments.positional.empty() && arguments.positional[0].is_text())
    budget.spend(text.size() / 32 * (arguments.positional[0].text().bytes.size() / 64));
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Bound bound(name, arguments, {"chars"});
    const Side side = name == "strip" ? Side::Both : name == "lstrip" ? Side::Left : Side::Right;
    return text_like(method.self, std::string(strip(text, optional_text(bound, 0), side)));
  }
  if (name == "split" || name == "rsplit") {
    const Bound bound(name, arguments, {"sep", "maxsplit"});
    const auto cut = name == "split" ? split : split_right;
    return list_like(method.self, cut(text, optional_text(bound, 0), limit_of(bound, 1)), budget);
  }
  if (name == "splitlines") {
    const Bound bound(name, arguments, {"keepends"});
    return list_like(method.self, split_lines(text, bound.flag(0, false) ? LineEnds::Keep : LineEnds::Drop),
                     budget);
  }
  if (name == "startswith" || name == "endswith")
    return starts_or_ends(method, arguments, name == "startswith");
  if (name == "find" || name == "index") return find(method, arguments, false, name == "index");
  if (name == "rfind" || name == "rindex") return find(method, arguments, true, name == "rindex");
  if (name == "partition" || name == "rpartition") return partition(method, arguments, name == "rpartition");
  if (name == "removeprefix" || name == "removesuffix")
    return removed_affix(method, arguments, name == "removeprefix");
  if (name == "center" || name == "ljust" || name == "rjust") return padded(method, arguments, budget);
  if (name == "zfill") return zero_filled(method, arguments, budget);
  if (name == "count") return count(method, arguments);
  if (name == "join") return join_all(method, arguments, budget);
  if (name == "replace") return replaced(method, arguments, budget);
  if (name == "format" && !method.self.is_markup()) return Value(format_braces(text, arguments, budget));
  const Bound none(name, arguments, {});
  if (auto changed = changed_case(method)) return std::move(*changed);
  if (auto answer = asked_class(method)) return std::move(*answer);
  not_supported(method);
}

Value call_dict_method(const Method& method, const Arguments& arguments, Budget& budget) {
  const Dict& dict = method.self.dict();
  if (method.name == "get") {
    const Bound bound("get", arguments, {"key", "default"}, 1);
    if (!arguments.named.empty()) fault("dict.get() takes no keyword arguments");
    budget.spend(bound.at(0).weight());
    const Value* found = dict.find(bound.at(0));
    return found != nullptr ? *found : bound.get(1, Value());
  }
  const Bound none(method.name, arguments, {});
  budget.spend(dict.size());
  if (method.name == "copy") return method.self;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries()) {
    if (method.name == "items")
      items.push_back(make_tuple({key, value}));
    else
      items.push_back(method.name == "keys" ? key : value);
  }
  if (method.name == "items") return make_sequence(SequenceKind::Items, std::move(items));
  if (method.name == "keys") return make_sequence(SequenceKind::Keys, std::move(items));
  if (method.name == "values") return make_sequence(SequenceKind::Values, std::move(items));
  not_supported(method);
}

Value call_list_method(const Method& method, const Arguments& arguments, Budget& budget) {
  const auto& items = method.self.sequence()->items;
  budget.spend(method.self.weight());
  if (method.name == "copy") return make_list(items);
  const Bound bound(method.name, arguments, {"value", "start", "stop"}, 1);
  if (method.name == "count")
    return Value(static_cast<Int>(std::count_if(
        items.begin(), items.end(), [&](const Value& item) { return equal(item, bound.at(0)); })));
  if (bound.has(1)) not_supported(method);
  for (size_t i = 0; i < items.size(); ++i)
    if (equal(items[i], bound.at(0))) return Value(i);
  fault("{} is not in {}", repr(bound.at(0), budget), method.self.type_name());
}

Value call_loop_method(const Method& method, const Arguments& arguments) {
  auto& loop = static_cast<Loop&>(*method.self.object());
  if (!arguments.named.empty()) fault("loop.{}() takes no keyword arguments", method.name);
  if (method.name == "cycle") {
    if (arguments.positional.empty()) fault("no items for cycling given");
    return arguments.positional[loop.index % arguments.positional.size()];
  }
  // A loop that held other loops could chain any number of them.
  for (const Value& value : arguments.positional)
    if (value.depth() > 0) fault("loop.changed() of '{}' is not supported", value.type_name());
  const auto same = [&] {
    return std::equal(loop.checked.begin(), loop.checked.end(), arguments.positional.begin(),
                      arguments.positional.end(), equal);
  };
  const bool changed = !loop.was_checked || !same();
  loop.was_checked = true;
  if (changed) loop.checked = arguments.positional;
  return Value(changed);
}

Value call_cycler_method(const Method& method, const Arguments& arguments) {
  const Bound none(method.name, arguments, {});
  auto& cycler = static_cast<Cycler&>(*method.self.object());
  if (method.name == "reset") {
    cycler.position = 0;
    return Value();
  }
  const Value current = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return current;
}

}  // namespace

Value call_method(const Method& method, const Arguments& arguments, Budget& budget) {
  if (method.self.is_text()) return call_text_method(method, arguments, budget);
  if (method.self.is_dict()) return call_dict_method(method, arguments, budget);
  if (method.self.is_sequence()) return call_list_method(method, arguments, budget);
  if (method.self.is(ObjectKind::Loop)) return call_loop_method(method, arguments);
  if (method.self.is(ObjectKind::Cycler)) return call_cycler_method(method, arguments);
  not_supported(method);
}

}  // namespace hearth::chat
