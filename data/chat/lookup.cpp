// Attributes and items of values, as jinja2's immutable sandbox lets templates see them.
#include <algorithm>
#include <array>

#include "data/chat/operations.h"

namespace hearth::chat {

namespace {

using Names = std::initializer_list<std::string_view>;

bool among(std::string_view name, Names names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Every name that Python's type answers to, supported or not: a key of the same name stands behind it.
bool is_method(const Value& value, std::string_view name) {
  if (value.is_text()) {
    return among(name,
                 {"capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
                  "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
                  "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
                  "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
                  "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
                  "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
                  "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
                  "swapcase",     "title",       "translate", "upper",      "zfill"}) ||
           (value.is_markup() && among(name, {"escape", "striptags", "unescape"}));
  }
  if (value.is_dict()) return among(name, {"copy", "fromkeys", "get", "items", "keys", "values"});
  if (value.is(SequenceKind::List)) return among(name, {"copy", "count", "index"});
  if (value.is(SequenceKind::Tuple) || value.is(SequenceKind::Range)) return among(name, {"count", "index"});
  if (value.is(ObjectKind::Loop)) return among(name, {"cycle", "changed"});
  if (value.is(ObjectKind::Cycler)) return among(name, {"next", "reset"});
  return false;
}

// Methods that change their object; the immutable sandbox hides them.
bool is_hidden(const Value& value, std::string_view name) {
  if (value.is_dict()) return among(name, {"clear", "pop", "popitem", "setdefault", "update"});
  if (value.is(SequenceKind::List))
    return among(name, {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"});
  return name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__";
}

// Attributes of Python's types that no template should need.
bool is_unsupported(const Value& value, std::string_view name) {
  if (value.is_number())
    return among(name,
                 {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes",
                  "fromhex", "hex", "imag", "is_integer", "numerator", "real", "to_bytes"});
  if (value.is(SequenceKind::Range)) return among(name, {"start", "stop", "step"});
  if (value.is(SequenceKind::Keys) || value.is(SequenceKind::Items) || value.is(SequenceKind::Values))
    return among(name, {"isdisjoint", "mapping"});
  if (value.is(SequenceKind::Generator)) return among(name, {"close", "send", "throw"});
  return value.is(ObjectKind::Macro) &&
         among(name, {"name", "arguments", "caller", "catch_kwargs", "catch_varargs"});
}

std::optional<Value> loop_attribute(const Loop& loop, std::string_view name) {
  const Int index = static_cast<Int>(loop.index), size = static_cast<Int>(loop.items.size());
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(size - index);
  if (name == "revindex0") return Value(size - index - 1);
  if (name == "length") return Value(size);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == size);
  if (name == "depth") return Value(loop.level + 1);
  if (name == "depth0") return Value(loop.level);
  if (name == "previtem")
    return index == 0 ? Value::undefined("there is no previous item") : loop.items[loop.index - 1];
  if (name == "nextitem")
    return index + 1 >= size ? Value::undefined("there is no next item") : loop.items[loop.index + 1];
  return std::nullopt;
}

std::optional<Value> own_attribute(const Value& value, const std::string& name) {
  if (is_hidden(value, name))
    return Value::undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, value.type_name()));
  if (is_method(value, name)) return Value(std::make_shared<Method>(value, name));
  if (is_unsupported(value, name))
    fault("the attribute '{}' of '{}' is not supported", name, value.type_name());
  if (value.is(ObjectKind::Namespace)) {
    const auto& attributes = static_cast<const Namespace&>(*value.object()).attributes;
    const auto found = attributes.find(name);
    if (found != attributes.end()) return found->second;
  }
  if (value.is(ObjectKind::Loop)) return loop_attribute(static_cast<const Loop&>(*value.object()), name);
  if (value.is(ObjectKind::Cycler) && name == "current") {
    const auto& cycler = static_cast<const Cycler&>(*value.object());
    return cycler.items[cycler.position];
  }
  return std::nullopt;
}

Value missing_attribute(const Value& value, const Value& name) {
  Budget message;
  return Value::undefined(fmt::format("'{}' has no attribute {}", value.described(), repr(name, message)));
}

}  // namespace

Value get_attribute(const Value& value, const std::string& name) {
  require_defined(value);
  if (auto own = own_attribute(value, name)) return std::move(*own);
  if (value.is_dict()) {
    const Value* found = value.dict().find(name);
    if (found != nullptr) return *found;
  }
  return missing_attribute(value, Value(name));
}

Value get_item(const Value& value, const Value& key) {
  require_defined(value);
  if (value.is_dict() && hashable(key)) {
    const Value* found = value.dict().find(key);
    if (found != nullptr) return *found;
  }
  if (key.is_integral()) {
    if (value.is_text()) {
      auto character = character_at(value.text(), key.integer());
      if (character) return text_like(value, std::move(*character));
    }
    if (value.is(SequenceKind::List) || value.is(SequenceKind::Tuple) || value.is(SequenceKind::Range)) {
      const auto& items = value.sequence()->items;
      const auto at = resolve_index(key.integer(), items.size());
      if (at) return items[*at];
    }
  }
  if (key.is_text()) {
    if (auto own = own_attribute(value, key.text().bytes)) return std::move(*own);
    return missing_attribute(value, key);
  }
  Budget message;
  return Value::undefined(fmt::format("{} has no element {}", value.described(), repr(key, message)));
}

Value get_slice(const Value& value, const Slice& slice, Budget& budget) {
  require_defined(value);
  if (value.is_text()) {
    budget.spend(1 + value.text().bytes.size() / (value.text().ascii ? 32 : 4));
    return text_like(value, slice_text(value.text(), slice));
  }
  if (!value.is(SequenceKind::List) && !value.is(SequenceKind::Tuple) && !value.is(SequenceKind::Range))
    fault("'{}' object is not subscriptable", value.type_name());
  const auto& items = value.sequence()->items;
  const SliceRange range = resolve(slice, items.size());
  budget.spend(static_cast<uint64_t>(range.count));
  std::vector<Value> out;
  for (int64_t i = 0; i < range.count; ++i)
    out.push_back(items[static_cast<size_t>(range.first + i * range.step)]);
  const Value result = make_sequence(value.sequence()->kind, std::move(out));
  result.sequence()->type.clear();  // of a range: how it would be written is not known
  return result;
}

}  // namespace hearth::chat
