// The values that a chat template computes with: Python's None, bool, int, float, str, list, tuple, dict and
// what the interpreter adds (undefined, views, generators, methods, functions, macros, loop, namespace).
// Values are cheap to copy: everything large is shared, and immutable but for namespaces, loops and the
// position of generators. Not thread-safe: a render makes values of its own.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace hearth::chat {

// What goes wrong while a template is executed. The interpreter adds the name and the line.
struct Fault {
  std::string message;
};
template <class... Args>
[[noreturn]] void fault(fmt::format_string<Args...> format, Args&&... args) {
  throw Fault{fmt::format(format, std::forward<Args>(args)...)};
}

// Bounds the work of one render, so that no template runs or grows for ever.
class Budget {
 public:
  // Roughly one unit per evaluated node or element; 20 to 100 ns each, so the longest render takes seconds.
  static constexpr uint64_t kUnits = 50'000'000;
  // Bytes of text that cost one unit: together with kUnits, a render allocates at most 1.6 GB of text.
  static constexpr uint64_t kBytesPerUnit = 32;
  static constexpr size_t kMaxTextBytes = size_t{64} << 20;

  void spend(uint64_t units) {
    if (units > left_) fault("the template takes more than {} steps", kUnits);
    left_ -= units;
  }
  void spend_text(size_t bytes) {
    if (bytes > kMaxTextBytes) fault("a text of the template would pass {} bytes", kMaxTextBytes);
    spend(1 + bytes / kBytesPerUnit);
  }

 private:
  uint64_t left_ = kUnits;
};

// 128 bits, so that every integer of 64 bits, signed or not, and sums of them are exact; beyond that is a
// Fault, where Python would go on.
__extension__ typedef __int128 Int;

class Value;

// How deep values may stand in one another; keeps recursion over them (text, equality, destruction) bounded.
inline constexpr int kMaxValueDepth = 200;

struct Undefined {
  std::string message;  // of the error that its use raises, as jinja2 words it
};

struct Text {
  std::string bytes;    // valid UTF-8
  bool ascii = false;   // bytes are code points
  bool markup = false;  // made by the filter `safe` or `escape`; other text joined to it is HTML-escaped
};

enum class SequenceKind { List, Tuple, Range, Generator, Keys, Values, Items };

struct Sequence {
  SequenceKind kind = SequenceKind::List;
  std::vector<Value> items;
  size_t taken = 0;                // Generator: how many items were consumed
  std::string type = "generator";  // Generator: its Python type. Range: how it is written
  int depth = 1;
  uint64_t weight = 1;
};

class Dict;

enum class ObjectKind { Namespace, Macro, Loop, Function, Method, Cycler, Joiner };

struct Object {
  explicit Object(ObjectKind object_kind) : kind(object_kind) {}
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  const ObjectKind kind;
  int depth = 1;
};

using TextPtr = std::shared_ptr<const Text>;
using SequencePtr = std::shared_ptr<Sequence>;
using DictPtr = std::shared_ptr<const Dict>;
using ObjectPtr = std::shared_ptr<Object>;
using UndefinedPtr = std::shared_ptr<const Undefined>;

class Value {
 public:
  Value() : data_(std::monostate{}) {}  // None
  explicit Value(bool value) : data_(value) {}
  explicit Value(Int value) : data_(value) {}
  explicit Value(int64_t value) : data_(Int{value}) {}
  explicit Value(size_t value) : data_(static_cast<Int>(value)) {}
  explicit Value(double value) : data_(value) {}
  explicit Value(std::string text);
  explicit Value(TextPtr text) : data_(std::move(text)) {}
  explicit Value(DictPtr dict) : data_(std::move(dict)) {}
  explicit Value(SequencePtr sequence) : data_(std::move(sequence)) {}
  explicit Value(ObjectPtr object) : data_(std::move(object)) {}
  static Value markup(std::string text);
  static Value undefined(std::string message);

  bool is_none() const { return std::holds_alternative<std::monostate>(data_); }
  bool is_undefined() const { return std::holds_alternative<UndefinedPtr>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<Int>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_text() const { return std::holds_alternative<TextPtr>(data_); }
  bool is_sequence() const { return std::holds_alternative<SequencePtr>(data_); }
  bool is_dict() const { return std::holds_alternative<DictPtr>(data_); }
  bool is_object() const { return std::holds_alternative<ObjectPtr>(data_); }
  bool is_integral() const { return is_int() || is_bool(); }  // Python's bool is an int
  bool is_number() const { return is_integral() || is_float(); }
  bool is(SequenceKind kind) const { return is_sequence() && sequence()->kind == kind; }
  bool is(ObjectKind kind) const { return is_object() && object()->kind == kind; }

  bool boolean() const { return std::get<bool>(data_); }
  Int integer() const { return is_bool() ? Int{boolean()} : std::get<Int>(data_); }
  double number() const { return is_float() ? std::get<double>(data_) : static_cast<double>(integer()); }
  const Text& text() const { return *std::get<TextPtr>(data_); }
  const SequencePtr& sequence() const { return std::get<SequencePtr>(data_); }
  const Dict& dict() const { return *std::get<DictPtr>(data_); }
  const DictPtr& dict_ptr() const { return std::get<DictPtr>(data_); }
  const ObjectPtr& object() const { return std::get<ObjectPtr>(data_); }
  const Undefined& undefined_info() const { return *std::get<UndefinedPtr>(data_); }
  bool is_markup() const { return is_text() && text().markup; }

  // How many levels of containers; 0 for scalars.
  int depth() const;
  // Roughly how many steps it takes to look at the whole of it, what is shared counted every time; at most a
  // little above Budget::kUnits. What compares or hashes values pays this first.
  uint64_t weight() const;
  // The name of its Python class, e.g. "str".
  std::string type_name() const;
  // The class as jinja2's messages about undefined attributes name it, e.g. "dict object", "None".
  std::string described() const;
  // Python's bool(value).
  bool truth() const;
  // The same object, or an equal scalar: Python's `is`, as far as templates can tell.
  bool same_as(const Value& other) const;

 private:
  std::variant<std::monostate, UndefinedPtr, bool, Int, double, TextPtr, SequencePtr, DictPtr, ObjectPtr>
      data_;
};

// Python's dict: keys in the order of insertion, 1 == 1.0 == True are one key.
class Dict {
 public:
  const std::vector<std::pair<Value, Value>>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  const Value* find(const Value& key) const;  // null where absent; Fault for a key that cannot be hashed
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
  int depth() const { return depth_; }
  uint64_t weight() const { return weight_; }

 private:
  size_t position(const Value& key, size_t hash) const;
  static constexpr size_t kNowhere = static_cast<size_t>(-1);
  static constexpr size_t kScanned = 8;  // up to this many entries are compared one by one
  std::vector<std::pair<Value, Value>> entries_;
  std::unordered_multimap<size_t, size_t> index_;  // hash of key -> entry, once there are more than kScanned
  int depth_ = 1;
  uint64_t weight_ = 1;
};

// Fault where items stand deeper than kMaxValueDepth.
Value make_sequence(SequenceKind kind, std::vector<Value> items);
Value make_generator(std::vector<Value> items, std::string type = "generator");
inline Value make_list(std::vector<Value> items) {
  return make_sequence(SequenceKind::List, std::move(items));
}
inline Value make_tuple(std::vector<Value> items) {
  return make_sequence(SequenceKind::Tuple, std::move(items));
}
int checked_depth(int depth);

// Raises jinja2's message if the value is undefined.
void require_defined(const Value& value);

// The work that equal and less may do; pay it before.
uint64_t comparison_weight(const Value& a, const Value& b);
bool equal(const Value& a, const Value& b);
// Python's a < b; Fault for types without an order between them. `symbol` is for the message.
bool less(const Value& a, const Value& b, std::string_view symbol = "<");
bool hashable(const Value& value);
size_t hash_of(const Value& value);
// Whether the value is iterable; a dict gives its keys, a text its characters, undefined nothing.
bool iterable(const Value& value);
// All items in order; a generator is used up. Fault "'int' object is not iterable".
std::vector<Value> iterate(const Value& value, Budget& budget);
// Python's len(); Fault for what has none.
Int length(const Value& value);

}  // namespace hearth::chat
