#include "trainer/interchange/torch_pickle.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <unordered_map>

#include "base/error.h"

namespace hearth {
namespace {

constexpr int64_t kMaxValues = 4'000'000;  // a state dict of a million tensors is far below; bounds memory

enum class Kind { None, Bool, Int, Float, Text, Sequence, Dict, Global, Storage, Tensor };

// Values refer to each other by plain pointers; the interpreter owns them all in one flat store, so that no
// nesting in the file, however deep or circular, turns into recursion here.
struct Value {
  Kind kind = Kind::None;
  int64_t number = 0;         // Bool, Int
  std::string text;           // Text; Global: "module name"; Storage: its key
  std::vector<Value*> items;  // Sequence; Dict: key, value, key, value
  DType dtype = DType::F32;   // Storage
  PickledTensor tensor;       // Tensor
};

std::optional<DType> storage_dtype(std::string_view global) {
  static const std::pair<std::string_view, DType> kTypes[] = {
      {"torch FloatStorage", DType::F32},     {"torch HalfStorage", DType::F16},
      {"torch BFloat16Storage", DType::BF16}, {"torch DoubleStorage", DType::F64},
      {"torch LongStorage", DType::I64},      {"torch IntStorage", DType::I32},
      {"torch ShortStorage", DType::I16},     {"torch CharStorage", DType::I8},
      {"torch ByteStorage", DType::U8},       {"torch BoolStorage", DType::Bool}};
  for (const auto& [name, dtype] : kTypes)
    if (name == global) return dtype;
  return std::nullopt;
}

class Unpickler {
 public:
  Unpickler(std::string_view bytes, const std::string& origin) : bytes_(bytes), origin_(origin) {}

  const Value& run() {
    for (;;) {
      const auto op = static_cast<unsigned char>(take(1)[0]);
      if (op == '.') break;
      if (!constant(op) && !memo(op) && !container(op)) execute(op);
    }
    check(stack_.size() == 1 && marks_.empty(), "ends with a wrong stack");
    return *stack_[0];
  }

 private:
  void check(bool holds, std::string_view what) const {
    HEARTH_CHECK(holds, BadInput, "{}: the pickle {} (at byte {})", origin_, what, position_);
  }
  std::string_view take(size_t count) {
    check(count <= bytes_.size() - position_, "is cut off");
    const std::string_view out = bytes_.substr(position_, count);
    position_ += count;
    return out;
  }
  template <class T>
  T scalar() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view line() {
    const size_t end = bytes_.find('\n', position_);
    check(end != std::string_view::npos, "is cut off");
    const std::string_view out = take(end - position_);
    take(1);
    return out;
  }

  Value* make(Kind kind, int64_t number = 0) {
    check(static_cast<int64_t>(store_.size()) < kMaxValues, "makes too many values");
    store_.emplace_back();
    store_.back().kind = kind;
    store_.back().number = number;
    return &store_.back();
  }
  void push(Value* value) { stack_.push_back(value); }
  void push_text(Kind kind, std::string text) {
    push(make(kind));
    stack_.back()->text = std::move(text);
  }
  Value* pop() {
    check(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "takes from an empty stack");
    Value* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  Value* top() const {
    check(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "looks at an empty stack");
    return stack_.back();
  }
  std::vector<Value*> pop_mark() {
    check(!marks_.empty(), "has no mark");
    std::vector<Value*> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  std::vector<Value*> pop_many(size_t count) {
    std::vector<Value*> items(count);
    while (count > 0) items[--count] = pop();
    return items;
  }
  void push_sequence(std::vector<Value*> items) {
    push(make(Kind::Sequence));
    stack_.back()->items = std::move(items);
  }

  // Numbers, strings, None. True where `op` is one of these.
  bool constant(unsigned char op) {
    switch (op) {
      case 'N':
        push(make(Kind::None));
        return true;
      case 0x88:
        push(make(Kind::Bool, 1));
        return true;
      case 0x89:
        push(make(Kind::Bool, 0));
        return true;
      case 'J':
        push(make(Kind::Int, scalar<int32_t>()));
        return true;
      case 'K':
        push(make(Kind::Int, scalar<uint8_t>()));
        return true;
      case 'M':
        push(make(Kind::Int, scalar<uint16_t>()));
        return true;
      case 0x8a:
        push(make(Kind::Int, long_integer()));
        return true;
      case 'G':
        take(8), push(make(Kind::Float));
        return true;  // no field that is read is a float
      case 'X':
        push_text(Kind::Text, std::string(take(scalar<uint32_t>())));
        return true;
      case 0x8c:
        push_text(Kind::Text, std::string(take(scalar<uint8_t>())));
        return true;
      default:
        return false;
    }
  }
  // LONG1: little-endian two's complement of up to eight bytes.
  int64_t long_integer() {
    const auto count = scalar<uint8_t>();
    check(count <= 8, "holds an integer beyond 64 bits");
    const std::string_view raw = take(count);
    uint64_t value = 0;
    for (size_t i = 0; i < raw.size(); ++i) value |= uint64_t{static_cast<unsigned char>(raw[i])} << (8 * i);
    const bool negative = !raw.empty() && (raw.back() & 0x80) != 0;
    if (negative && raw.size() < 8) value |= ~uint64_t{0} << (8 * raw.size());
    return static_cast<int64_t>(value);
  }
  bool memo(unsigned char op) {
    switch (op) {
      case 'q':
        memo_[scalar<uint8_t>()] = top();
        return true;
      case 'r':
        memo_[scalar<uint32_t>()] = top();
        return true;
      case 0x94:
        memo_[static_cast<uint32_t>(memo_.size())] = top();
        return true;
      case 'h':
        recall(scalar<uint8_t>());
        return true;
      case 'j':
        recall(scalar<uint32_t>());
        return true;
      default:
        return false;
    }
  }
  void recall(uint32_t index) {
    const auto found = memo_.find(index);
    check(found != memo_.end(), "recalls what it did not memorise");
    push(found->second);
  }
  bool container(unsigned char op) {
    switch (op) {
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case ')':
        push_sequence({});
        return true;
      case ']':
        push_sequence({});
        return true;
      case '}':
        push(make(Kind::Dict));
        return true;
      case 't':
        push_sequence(pop_mark());
        return true;
      case 0x85:
        push_sequence(pop_many(1));
        return true;
      case 0x86:
        push_sequence(pop_many(2));
        return true;
      case 0x87:
        push_sequence(pop_many(3));
        return true;
      case 'a':
        extend(Kind::Sequence, pop_many(1));
        return true;
      case 'e':
        extend(Kind::Sequence, pop_mark());
        return true;
      case 's':
        extend(Kind::Dict, pop_many(2));
        return true;
      case 'u':
        extend(Kind::Dict, pop_mark());
        return true;
      default:
        return false;
    }
  }
  void extend(Kind kind, const std::vector<Value*>& items) {
    Value* target = top();
    check(target->kind == kind && (kind == Kind::Sequence || items.size() % 2 == 0),
          "fills a wrong container");
    target->items.insert(target->items.end(), items.begin(), items.end());
  }
  void execute(unsigned char op) {
    switch (op) {
      case 0x80:
        check(scalar<uint8_t>() <= 4, "has a protocol beyond 4");
        return;
      case 0x95:
        take(8);
        return;  // FRAME: a hint for streams
      case 'c': {
        const std::string module(line());  // one after the other: arguments of a call have no order
        global(module, std::string(line()));
        return;
      }
      case 0x93: {
        const std::vector<Value*> names = pop_many(2);
        check(names[0]->kind == Kind::Text && names[1]->kind == Kind::Text,
              "names something that is not text");
        global(names[0]->text, names[1]->text);
        return;
      }
      case 'Q':
        persistent(*pop());
        return;
      case 'R':
        reduce();
        return;
      case 'b':  // BUILD: a state dict's _metadata; attributes of a plain dict change no tensor
        pop();
        check(top()->kind == Kind::Dict, "sets attributes of something that is not a dict");
        return;
      default:
        check(false, fmt::format("uses operation 0x{:02x}, which a state dict does not need", op));
    }
  }
  void global(const std::string& module, const std::string& name) {
    const std::string full = module + " " + name;
    HEARTH_CHECK(full == "collections OrderedDict" || full == "torch._utils _rebuild_tensor_v2" ||
                     full == "torch._utils _rebuild_parameter" || storage_dtype(full),
                 BadInput,
                 "{}: the pickle names {}.{}; Hearth reads plain state dicts only and runs no code of a "
                 "file. Save the "
                 "model as safetensors where you trust the file",
                 origin_, module.substr(0, 80), name.substr(0, 80));
    push_text(Kind::Global, full);
  }
  // ("storage", type, key, device, elements)
  void persistent(const Value& id) {
    const auto& f = id.items;
    check(id.kind == Kind::Sequence && f.size() == 5 && f[0]->kind == Kind::Text && f[0]->text == "storage" &&
              f[1]->kind == Kind::Global && f[2]->kind == Kind::Text && f[4]->kind == Kind::Int &&
              f[4]->number >= 0,
          "has a persistent id that is not a storage");
    const auto dtype = storage_dtype(f[1]->text);
    check(dtype.has_value(), "has a storage of an unknown type");
    push_text(Kind::Storage, f[2]->text);
    stack_.back()->dtype = *dtype;
    stack_.back()->number = f[4]->number;
  }
  void reduce() {
    const std::vector<Value*> call = pop_many(2);
    check(call[0]->kind == Kind::Global && call[1]->kind == Kind::Sequence,
          "calls something that is not a function");
    const auto& arguments = call[1]->items;
    if (call[0]->text == "collections OrderedDict") {
      check(arguments.empty(), "fills an OrderedDict in a call");
      push(make(Kind::Dict));
    } else if (call[0]->text == "torch._utils _rebuild_tensor_v2") {
      rebuild(arguments);
    } else if (call[0]->text == "torch._utils _rebuild_parameter") {
      check(!arguments.empty() && arguments[0]->kind == Kind::Tensor, "makes a parameter of no tensor");
      push(arguments[0]);
    } else {
      check(false, "calls a storage type");
    }
  }
  std::vector<int64_t> extents(const Value& list) const {
    std::vector<int64_t> out;
    check(list.kind == Kind::Sequence && list.items.size() <= 8, "has a wrong shape");
    for (const Value* item : list.items) {
      check(item->kind == Kind::Int && item->number >= 0, "has a wrong extent or stride");
      out.push_back(item->number);
    }
    return out;
  }
  // (storage, offset, size, stride, requires_grad, hooks[, metadata])
  void rebuild(const std::vector<Value*>& a) {
    check(a.size() >= 4 && a[0]->kind == Kind::Storage && a[1]->kind == Kind::Int && a[1]->number >= 0,
          "makes a tensor of no storage");
    Value* value = make(Kind::Tensor);
    PickledTensor& tensor = value->tensor;
    tensor.info.dtype = a[0]->dtype;
    tensor.info.shape = extents(*a[2]);
    tensor.storage = a[0]->text;
    tensor.storage_numel = a[0]->number;
    tensor.first = a[1]->number;
    const std::vector<int64_t> stride = extents(*a[3]);
    check(stride.size() == tensor.info.shape.size(), "has a wrong stride");
    int64_t numel = 1;
    for (size_t d = stride.size(); d-- > 0;) {
      check(stride[d] == numel || tensor.info.shape[d] <= 1,
            "holds a tensor that is not row-major, which is not read");
      numel = checked_mul(numel, tensor.info.shape[d]);
    }
    check(checked_add(tensor.first, numel) <= tensor.storage_numel, "holds a tensor that leaves its storage");
    push(value);
  }

  std::string_view bytes_;
  const std::string& origin_;
  size_t position_ = 0;
  std::deque<Value> store_;
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, Value*> memo_;
};

}  // namespace

std::vector<PickledTensor> read_pickled_tensors(std::string_view pickle, const std::string& origin) {
  Unpickler unpickler(pickle, origin);
  const Value& root = unpickler.run();
  HEARTH_CHECK(root.kind == Kind::Dict, BadInput, "{}: is not a dict of tensors", origin);
  std::vector<PickledTensor> out;
  for (size_t i = 0; i < root.items.size(); i += 2) {
    const Value &key = *root.items[i], &value = *root.items[i + 1];
    HEARTH_CHECK(key.kind == Kind::Text && value.kind == Kind::Tensor, BadInput,
                 "{}: entry {} is not a named tensor; only plain state dicts are read", origin,
                 key.kind == Kind::Text ? "'" + key.text.substr(0, 80) + "'" : std::to_string(i / 2));
    out.push_back(value.tensor);
    out.back().info.name = key.text;
  }
  return out;
}

}  // namespace hearth
