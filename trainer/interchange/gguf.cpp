#include "trainer/interchange/gguf.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "base/error.h"

namespace hearth {
namespace {

constexpr std::array<char, 4> kMagic{'G', 'G', 'U', 'F'};
constexpr int64_t kMaxEntries = 1'000'000;  // tensors; metadata keys
constexpr int64_t kMaxArrayElements = int64_t{1}
                                      << 25;  // of one metadata array: twice the largest vocabulary accepted
constexpr int64_t kMaxDims = 4;               // ggml's own limit
constexpr int64_t kMaxName = 512;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kReadBlocks = 1 << 14;  // blocks dequantised at once: at most 16 MB of floats

// Value types of the metadata, numbered as in the format.
enum class ValueType : uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };

int64_t smallest_bytes(ValueType type) {
  switch (type) {
    case ValueType::U8:
    case ValueType::I8:
    case ValueType::Bool:
      return 1;
    case ValueType::U16:
    case ValueType::I16:
      return 2;
    case ValueType::U32:
    case ValueType::I32:
    case ValueType::F32:
      return 4;
    default:
      return 8;
  }
}

// Reads the header front to back through a window, so that a header of many small fields needs few system
// calls.
class Cursor {
 public:
  Cursor(const ReadableFile& file, std::string path)
      : file_(file), path_(std::move(path)), size_(file.size()) {}

  int64_t position() const { return position_; }
  int64_t left() const { return size_ - position_; }
  std::string where() const { return fmt::format("{} at byte {}", path_, position_); }

  void bytes(void* out, int64_t count) {
    HEARTH_CHECK(count <= left(), BadInput,
                 "{}: the file ends where {} more bytes should be; it is truncated", where(), count);
    auto* to = static_cast<char*>(out);
    while (count > 0) {
      if (position_ < begin_ || position_ >= begin_ + static_cast<int64_t>(window_.size())) refill();
      const int64_t at = position_ - begin_;
      const int64_t take = std::min(count, static_cast<int64_t>(window_.size()) - at);
      std::memcpy(to, window_.data() + at, static_cast<size_t>(take));
      to += take, position_ += take, count -= take;
    }
  }
  template <class T>
  T scalar() {
    T value;
    bytes(&value, sizeof(T));
    return value;
  }
  // A count or length: a uint64 that must be at most `limit`.
  int64_t count(const char* what, int64_t limit) {
    const std::string at = where();
    const auto value = scalar<uint64_t>();
    HEARTH_CHECK(value <= static_cast<uint64_t>(limit), BadInput, "{}: {} is {}, at most {} is possible here",
                 at, what, value, limit);
    return static_cast<int64_t>(value);
  }
  std::string string(const char* what, int64_t limit = INT64_MAX) {
    std::string out(static_cast<size_t>(count(what, std::min(limit, std::max<int64_t>(left() - 8, 0)))),
                    '\0');
    bytes(out.data(), static_cast<int64_t>(out.size()));
    return out;
  }

 private:
  void refill() {
    begin_ = position_;
    window_.resize(static_cast<size_t>(std::min<int64_t>(left(), 1 << 20)));
    file_.read_at(begin_, std::as_writable_bytes(std::span(window_)));
  }
  const ReadableFile& file_;
  std::string path_;
  int64_t size_ = 0, position_ = 0, begin_ = 0;
  std::vector<char> window_;
};

int64_t integer_value(Cursor& in, ValueType type) {
  switch (type) {
    case ValueType::U8:
      return in.scalar<uint8_t>();
    case ValueType::I8:
      return in.scalar<int8_t>();
    case ValueType::U16:
      return in.scalar<uint16_t>();
    case ValueType::I16:
      return in.scalar<int16_t>();
    case ValueType::U32:
      return in.scalar<uint32_t>();
    case ValueType::I32:
      return in.scalar<int32_t>();
    case ValueType::U64:
      return in.count("a 64-bit value", INT64_MAX);
    default:
      return in.scalar<int64_t>();
  }
}

bool bool_value(Cursor& in) {
  const auto value = in.scalar<uint8_t>();
  HEARTH_CHECK(value <= 1, BadInput, "{}: a boolean must be 0 or 1, got {}", in.where(), value);
  return value == 1;
}

ValueType value_type(Cursor& in) {
  const std::string at = in.where();
  const auto type = in.scalar<uint32_t>();
  HEARTH_CHECK(type <= static_cast<uint32_t>(ValueType::F64), BadInput,
               "{}: value type {} is not one of GGUF's 0 to 12", at, type);
  return static_cast<ValueType>(type);
}

GgufArray array_value(Cursor& in, const std::string& key) {
  const ValueType type = value_type(in);
  HEARTH_CHECK(type != ValueType::Array, BadInput, "{}: {} is an array of arrays, which no model needs",
               in.where(), key);
  const int64_t fits = std::max<int64_t>(in.left() - 8, 0) / smallest_bytes(type);
  const int64_t count = in.count("an array length", std::min(kMaxArrayElements, fits));
  const auto fill = [&](auto element) {
    std::vector<decltype(element())> out;
    out.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) out.push_back(element());
    return GgufArray(std::move(out));
  };
  switch (type) {
    case ValueType::String:
      return fill([&] { return in.string("a string length"); });
    case ValueType::F32:
      return fill([&] { return static_cast<double>(in.scalar<float>()); });
    case ValueType::F64:
      return fill([&] { return in.scalar<double>(); });
    case ValueType::Bool:
      return fill([&] { return int64_t{bool_value(in)}; });
    default:
      return fill([&] { return integer_value(in, type); });
  }
}

GgufValue metadata_value(Cursor& in, const std::string& key) {
  const ValueType type = value_type(in);
  switch (type) {
    case ValueType::F32:
      return static_cast<double>(in.scalar<float>());
    case ValueType::F64:
      return in.scalar<double>();
    case ValueType::Bool:
      return bool_value(in);
    case ValueType::String:
      return in.string("a string length");
    case ValueType::Array:
      return array_value(in, key);
    default:
      return integer_value(in, type);
  }
}

// One entry of the tensor directory; the offset is still relative to the data section.
GgufTensor tensor_entry(Cursor& in, int64_t alignment) {
  GgufTensor tensor;
  tensor.name = in.string("a name length", kMaxName);
  const auto dims = in.scalar<uint32_t>();
  HEARTH_CHECK(dims >= 1 && dims <= kMaxDims, BadInput, "{}: tensor {} has {} dimensions, expected 1 to {}",
               in.where(), tensor.name, dims, kMaxDims);
  int64_t numel = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    tensor.shape.push_back(in.count("an extent", INT64_MAX));
    HEARTH_CHECK(tensor.shape.back() > 0, BadInput, "{}: tensor {} has an empty dimension", in.where(),
                 tensor.name);
    numel = checked_mul(numel, tensor.shape.back());
  }
  const auto type = in.scalar<uint32_t>();
  const auto info = gguf_type_info(type);
  HEARTH_CHECK(info, BadInput,
               "{}: tensor {} is stored as {} ({}), which Hearth does not read; it reads F32, F16, BF16, "
               "Q8_0, Q4_0, Q4_1, "
               "Q5_0, Q5_1, Q4_K, Q5_K and Q6_K",
               in.where(), tensor.name, gguf_type_name(type), type);
  tensor.type = static_cast<GgufType>(type);
  HEARTH_CHECK(tensor.shape[0] % info->block_elements == 0, BadInput,
               "{}: tensor {} has rows of {}, {} needs multiples of {}", in.where(), tensor.name,
               tensor.shape[0], info->name, info->block_elements);
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  tensor.offset = in.count("an offset", INT64_MAX);
  HEARTH_CHECK(tensor.offset % alignment == 0, BadInput,
               "{}: tensor {} lies at offset {}, expected a multiple of {}", in.where(), tensor.name,
               tensor.offset, alignment);
  return tensor;
}

int64_t stored_bytes(const GgufTensor& tensor) {
  const GgufTypeInfo info = *gguf_type_info(static_cast<uint32_t>(tensor.type));
  return checked_mul(tensor.numel() / info.block_elements, info.block_bytes);
}

// Data must lie inside the file, and no byte may belong to two tensors.
void check_extents(const std::string& path, std::vector<GgufTensor> tensors, int64_t file_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  int64_t free_from = 0;
  std::string before;
  for (const GgufTensor& tensor : tensors) {
    const int64_t end = checked_add(tensor.offset, stored_bytes(tensor));
    HEARTH_CHECK(end <= file_bytes, BadInput,
                 "{}: tensor {} ends at byte {}, the file has {}; it is truncated", path, tensor.name, end,
                 file_bytes);
    HEARTH_CHECK(tensor.offset >= free_from, BadInput, "{}: tensors {} and {} overlap", path, before,
                 tensor.name);
    free_from = end;
    before = tensor.name;
  }
}

void check_magic(Cursor& in, const std::string& path) {
  std::array<char, 4> magic{};
  in.bytes(magic.data(), 4);
  HEARTH_CHECK(magic == kMagic, BadInput, "{}: does not start with GGUF", path);
  const auto version = in.scalar<uint32_t>();
  HEARTH_CHECK((version & 0xffffu) != 0, BadInput,
               "{}: is a big-endian GGUF file; Hearth reads little-endian ones", path);
  HEARTH_CHECK(version == 2 || version == 3, BadInput, "{}: GGUF version {}, Hearth reads 2 and 3", path,
               version);
}

}  // namespace

int64_t GgufTensor::numel() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;  // checked when the directory was read
  return count;
}

GgufFile::GgufFile(FileSystem& fs, const std::string& path) : path_(path), file_(fs.open(path)) {
  Cursor in(*file_, path);
  check_magic(in, path);
  // The smallest tensor entry has 32 bytes, the smallest metadata entry 13.
  const int64_t tensor_count = in.count("the number of tensors", std::min(kMaxEntries, in.left() / 32));
  const int64_t key_count = in.count("the number of metadata keys", std::min(kMaxEntries, in.left() / 13));
  for (int64_t i = 0; i < key_count; ++i) {
    const std::string key = in.string("a key length", int64_t{1} << 16);
    const auto [at, fresh] = metadata_.emplace(key, metadata_value(in, key));
    HEARTH_CHECK(fresh, BadInput, "{}: the key {} stands twice", in.where(), key);
  }
  const int64_t alignment = integer_or("general.alignment", kDefaultAlignment);
  HEARTH_CHECK(alignment > 0 && alignment <= (1 << 24) && (alignment & (alignment - 1)) == 0, BadInput,
               "{}: general.alignment is {}, expected a power of two", path, alignment);
  std::set<std::string> names;
  for (int64_t i = 0; i < tensor_count; ++i) {
    tensors_.push_back(tensor_entry(in, alignment));
    HEARTH_CHECK(names.insert(tensors_.back().name).second, BadInput, "{}: tensor {} stands twice",
                 in.where(), tensors_.back().name);
  }
  const int64_t data = (in.position() + alignment - 1) / alignment * alignment;
  for (GgufTensor& tensor : tensors_) tensor.offset = checked_add(tensor.offset, data);
  check_extents(path, tensors_, file_->size());
}

const GgufTensor* GgufFile::find(const std::string& name) const {
  for (const GgufTensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const GgufValue* GgufFile::value(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

int64_t GgufFile::integer(const std::string& key) const {
  const GgufValue* found = value(key);
  HEARTH_CHECK(found, BadInput, "{}: the key {} is missing", path_, key);
  const auto* number = std::get_if<int64_t>(found);
  HEARTH_CHECK(number, BadInput, "{}: {} must be one integer", path_, key);
  return *number;
}

int64_t GgufFile::integer_or(const std::string& key, int64_t fallback) const {
  return value(key) ? integer(key) : fallback;
}

double GgufFile::number(const std::string& key) const {
  const GgufValue* found = value(key);
  HEARTH_CHECK(found, BadInput, "{}: the key {} is missing", path_, key);
  if (const auto* whole = std::get_if<int64_t>(found)) return static_cast<double>(*whole);
  const auto* real = std::get_if<double>(found);
  HEARTH_CHECK(real && std::isfinite(*real), BadInput, "{}: {} must be a finite number", path_, key);
  return *real;
}

double GgufFile::number_or(const std::string& key, double fallback) const {
  return value(key) ? number(key) : fallback;
}

std::string GgufFile::text(const std::string& key) const {
  const GgufValue* found = value(key);
  HEARTH_CHECK(found, BadInput, "{}: the key {} is missing", path_, key);
  const auto* string = std::get_if<std::string>(found);
  HEARTH_CHECK(string, BadInput, "{}: {} must be a string", path_, key);
  return *string;
}

std::string GgufFile::text_or(const std::string& key, const std::string& fallback) const {
  return value(key) ? text(key) : fallback;
}

bool GgufFile::flag_or(const std::string& key, bool fallback) const {
  const GgufValue* found = value(key);
  if (!found) return fallback;
  const auto* flag = std::get_if<bool>(found);
  HEARTH_CHECK(flag, BadInput, "{}: {} must be a boolean", path_, key);
  return *flag;
}

const GgufArray* GgufFile::array(const std::string& key) const {
  const GgufValue* found = value(key);
  if (!found) return nullptr;
  const auto* list = std::get_if<GgufArray>(found);
  HEARTH_CHECK(list, BadInput, "{}: {} must be an array", path_, key);
  return list;
}

void GgufFile::read(const GgufTensor& tensor, int64_t begin, int64_t end, float* out) const {
  HEARTH_REQUIRE(0 <= begin && begin <= end && end <= tensor.numel(), "{}: elements [{}, {}) of {}",
                 tensor.name, begin, end, tensor.numel());
  const GgufTypeInfo info = *gguf_type_info(static_cast<uint32_t>(tensor.type));
  const int64_t per_block = info.block_elements;
  std::vector<std::byte> stored;
  std::vector<float> values;
  while (begin < end) {
    const int64_t first = begin / per_block;
    const int64_t blocks = std::min((end + per_block - 1) / per_block - first, kReadBlocks);
    stored.resize(static_cast<size_t>(blocks * info.block_bytes));
    values.resize(static_cast<size_t>(blocks * per_block));
    file_->read_at(tensor.offset + first * info.block_bytes, stored);
    dequantise(tensor.type, stored.data(), blocks, values.data());
    const int64_t stop = std::min(end, (first + blocks) * per_block);
    std::memcpy(out, values.data() + (begin - first * per_block),
                static_cast<size_t>(stop - begin) * sizeof(float));
    out += stop - begin;
    begin = stop;
  }
}

bool is_gguf(FileSystem& fs, const std::string& path) {
  if (!fs.exists(path) || fs.is_directory(path)) return false;
  const auto file = fs.open(path);
  std::array<char, 4> magic{};
  if (file->size() < 4) return false;
  file->read_at(0, std::as_writable_bytes(std::span(magic)));
  return magic == kMagic;
}

}  // namespace hearth
