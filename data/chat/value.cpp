#include "data/chat/value.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "data/chat/objects.h"
#include "data/chat/text.h"

namespace hearth::chat {

namespace {

const char* const kSequenceTypes[] = {"list",      "tuple",       "range",     "generator",
                                      "dict_keys", "dict_values", "dict_items"};

std::string_view object_type(const Object& object) {
  switch (object.kind) {
    case ObjectKind::Namespace:
      return "Namespace";
    case ObjectKind::Macro:
      return "Macro";
    case ObjectKind::Loop:
      return "LoopContext";
    case ObjectKind::Function:
      return "function";
    case ObjectKind::Method:
      return "builtin_function_or_method";
    case ObjectKind::Cycler:
      return "Cycler";
    case ObjectKind::Joiner:
      return "Joiner";
  }
  HEARTH_ASSERT(false);
}

bool is_ascii(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

uint64_t saturated(uint64_t weight) {
  return std::min(weight, Budget::kUnits + 1);
}

uint64_t weight_of(const std::vector<Value>& items) {
  uint64_t weight = 1;
  for (const Value& item : items) weight = saturated(weight + item.weight());
  return weight;
}

int deepest(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return depth;
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), equal);
}

bool equal_dicts(const Dict& a, const Dict& b) {
  return a.size() == b.size() && std::all_of(a.entries().begin(), a.entries().end(), [&](const auto& entry) {
           const Value* other = b.find(entry.first);
           return other != nullptr && equal(entry.second, *other);
         });
}

size_t mixed(size_t seed, size_t hash) {
  return seed * 1000003 ^ hash;
}

}  // namespace

Value::Value(std::string text) {
  const bool ascii = is_ascii(text);
  data_ = std::make_shared<const Text>(Text{std::move(text), ascii, false});
}

Value Value::markup(std::string text) {
  const bool ascii = is_ascii(text);
  return Value(std::make_shared<const Text>(Text{std::move(text), ascii, true}));
}

Value Value::undefined(std::string message) {
  Value value;
  value.data_ = std::make_shared<const Undefined>(Undefined{std::move(message)});
  return value;
}

int Value::depth() const {
  if (is_sequence()) return sequence()->depth;
  if (is_dict()) return dict().depth();
  return is_object() ? object()->depth : 0;
}

uint64_t Value::weight() const {
  if (is_text()) return 1 + text().bytes.size() / Budget::kBytesPerUnit;
  if (is_sequence()) return sequence()->weight;
  return is_dict() ? dict().weight() : 1;
}

std::string Value::type_name() const {
  if (is_none()) return "NoneType";
  if (is_undefined()) return "Undefined";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_text()) return text().markup ? "Markup" : "str";
  if (is_dict()) return "dict";
  if (is_object()) return std::string(object_type(*object()));
  if (is(SequenceKind::Generator)) return sequence()->type;
  return kSequenceTypes[static_cast<size_t>(sequence()->kind)];
}

std::string Value::described() const {
  if (is_none()) return "None";
  if (is_markup()) return "markupsafe.Markup object";
  if (is(ObjectKind::Namespace)) return "transformers.utils.chat_template_utils.TemplateNamespace object";
  if (is(ObjectKind::Loop) || is(ObjectKind::Macro)) return "jinja2.runtime." + type_name() + " object";
  return type_name() + " object";
}

bool Value::truth() const {
  if (is_none() || is_undefined()) return false;
  if (is_integral()) return integer() != 0;
  if (is_float()) return number() != 0;  // NaN is true
  if (is_text()) return !text().bytes.empty();
  if (is_dict()) return dict().size() != 0;
  if (is(SequenceKind::Generator)) return true;
  if (is_sequence()) return !sequence()->items.empty();
  if (is(ObjectKind::Loop)) return length(*this) != 0;
  return true;
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_sequence()) return sequence() == other.sequence();
  if (is_dict()) return dict_ptr() == other.dict_ptr();
  if (is_object()) return object() == other.object();
  return equal(*this, other);
}

size_t Dict::position(const Value& key, size_t hash) const {
  if (entries_.size() <= kScanned) {
    for (size_t i = 0; i < entries_.size(); ++i)
      if (equal(entries_[i].first, key)) return i;
    return kNowhere;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto found = begin; found != end; ++found)
    if (equal(entries_[found->second].first, key)) return found->second;
  return kNowhere;
}

const Value* Dict::find(const Value& key) const {
  const size_t at = position(key, hash_of(key));
  return at == kNowhere ? nullptr : &entries_[at].second;
}

const Value* Dict::find(std::string_view key) const {
  return find(Value(std::string(key)));
}

void Dict::set(const Value& key, Value value) {
  const size_t hash = hash_of(key);
  depth_ = std::max(depth_, checked_depth(std::max(key.depth(), value.depth()) + 1));
  weight_ = saturated(weight_ + key.weight() + value.weight());
  const size_t at = position(key, hash);
  if (at != kNowhere) {
    entries_[at].second = std::move(value);
    return;
  }
  entries_.emplace_back(key, std::move(value));
  if (entries_.size() == kScanned + 1)
    for (size_t i = 0; i < kScanned; ++i) index_.emplace(hash_of(entries_[i].first), i);
  if (entries_.size() > kScanned) index_.emplace(hash, entries_.size() - 1);
}

int checked_depth(int depth) {
  if (depth > kMaxValueDepth) fault("values stand in one another more than {} levels deep", kMaxValueDepth);
  return depth;
}

Value make_sequence(SequenceKind kind, std::vector<Value> items) {
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  sequence->depth = checked_depth(deepest(items) + 1);
  sequence->weight = weight_of(items);
  sequence->items = std::move(items);
  return Value(std::move(sequence));
}

Value make_generator(std::vector<Value> items, std::string type) {
  const Value value = make_sequence(SequenceKind::Generator, std::move(items));
  value.sequence()->type = std::move(type);
  return value;
}

void require_defined(const Value& value) {
  if (value.is_undefined()) throw Fault{value.undefined_info().message};
}

uint64_t comparison_weight(const Value& a, const Value& b) {
  return std::min(a.weight(), b.weight());
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.is_text() && b.is_text()) return a.text().bytes == b.text().bytes;
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_dict() && b.is_dict()) return a.dict_ptr() == b.dict_ptr() || equal_dicts(a.dict(), b.dict());
  if (a.is_object() && b.is_object()) return a.object() == b.object();
  if (!a.is_sequence() || !b.is_sequence() || a.sequence()->kind != b.sequence()->kind) return false;
  if (a.sequence() == b.sequence()) return true;
  return !a.is(SequenceKind::Generator) && !a.is(SequenceKind::Values) &&
         equal_items(a.sequence()->items, b.sequence()->items);
}

bool less(const Value& a, const Value& b, std::string_view symbol) {
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() < b.integer();
    return a.number() < b.number();
  }
  // The order of UTF-8 bytes is the order of code points.
  if (a.is_text() && b.is_text()) return a.text().bytes < b.text().bytes;
  const bool lists = a.is(SequenceKind::List) && b.is(SequenceKind::List);
  if (lists || (a.is(SequenceKind::Tuple) && b.is(SequenceKind::Tuple))) {
    const auto &x = a.sequence()->items, &y = b.sequence()->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i])) return less(x[i], y[i], symbol);
    return x.size() < y.size();
  }
  fault("'{}' not supported between instances of '{}' and '{}'", symbol, a.type_name(), b.type_name());
}

bool hashable(const Value& value) {
  if (value.is(SequenceKind::Tuple)) {
    const auto& items = value.sequence()->items;
    return std::all_of(items.begin(), items.end(), hashable);
  }
  return !value.is_dict() && !value.is(SequenceKind::List) && !value.is(SequenceKind::Items) &&
         !value.is(SequenceKind::Keys);
}

size_t hash_of(const Value& value) {
  if (!hashable(value)) fault("unhashable type: '{}'", value.type_name());
  if (value.is_text()) return std::hash<std::string>{}(value.text().bytes);
  if (value.is_number()) return std::hash<double>{}(value.number());
  if (value.is(SequenceKind::Tuple)) {
    size_t hash = 7;
    for (const Value& item : value.sequence()->items) hash = mixed(hash, hash_of(item));
    return hash;
  }
  if (value.is_sequence()) return std::hash<SequencePtr>{}(value.sequence());
  return value.is_object() ? std::hash<ObjectPtr>{}(value.object()) : 1;
}

bool iterable(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is_sequence() || value.is_dict();
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (value.is_text()) {
    budget.spend(value.text().bytes.size());
    items.reserve(value.text().bytes.size());
    for (const std::string_view character : characters(value.text().bytes))
      items.emplace_back(std::string(character));
    return items;
  }
  if (value.is_dict()) {
    budget.spend(value.dict().size());
    for (const auto& [key, unused] : value.dict().entries()) items.push_back(key);
    return items;
  }
  if (!value.is_sequence()) fault("'{}' object is not iterable", value.type_name());
  Sequence& sequence = *value.sequence();
  budget.spend(sequence.items.size());
  if (sequence.kind != SequenceKind::Generator) return sequence.items;
  items.assign(sequence.items.begin() + static_cast<std::ptrdiff_t>(sequence.taken), sequence.items.end());
  sequence.taken = sequence.items.size();
  return items;
}

Int length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_text()) return static_cast<Int>(count_characters(value.text()));
  if (value.is_dict()) return static_cast<Int>(value.dict().size());
  if (value.is(ObjectKind::Loop))
    return static_cast<Int>(static_cast<const Loop&>(*value.object()).items.size());
  if (!value.is_sequence() || value.is(SequenceKind::Generator))
    fault("object of type '{}' has no len()", value.type_name());
  return static_cast<Int>(value.sequence()->items.size());
}

}  // namespace hearth::chat
