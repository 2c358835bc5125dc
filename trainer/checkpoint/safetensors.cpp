#include "trainer/checkpoint/safetensors.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"
#include "base/strict_json.h"

namespace hearth {
namespace {

using nlohmann::json;

constexpr int64_t kPrefix = 8;  // bytes of the header length
constexpr int64_t kChunkBytes = int64_t{8}
                                << 20;  // one conversion step; large enough to hide the system call

// A non-negative integer that was written as one: no sign, no fraction, no exponent.
int64_t size_field(const json& value, const std::string& what) {
  HEARTH_CHECK(value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX),
               BadInput, "{}: expected a non-negative integer below 2^63, got {}", what,
               value.dump().substr(0, 80));
  return value.get<int64_t>();
}

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const json& value,
                             int64_t data_begin, int64_t file_bytes) {
  const std::string what = path + ": tensor " + name;
  HEARTH_CHECK(!name.empty() && static_cast<int64_t>(name.size()) <= kMaxTensorName, BadInput,
               "{}: tensor name of {} bytes, expected 1 to {}", path, name.size(), kMaxTensorName);
  HEARTH_CHECK(name.find('\0') == std::string::npos, BadInput, "{}: a tensor name holds a NUL byte", path);
  HEARTH_CHECK(value.is_object() && value.size() == 3 && value.contains("dtype") && value.contains("shape") &&
                   value.contains("data_offsets"),
               BadInput, "{}: expected exactly dtype, shape and data_offsets", what);
  SafetensorsEntry entry;
  entry.info.name = name;
  const json& dtype = value["dtype"];
  const auto known = dtype.is_string() ? dtype_from_safetensors(dtype.get<std::string>()) : std::nullopt;
  HEARTH_CHECK(known, BadInput,
               "{}: dtype {} is not one Hearth reads (F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL)", what,
               dtype.dump().substr(0, 80));
  entry.info.dtype = *known;
  const json& shape = value["shape"];
  HEARTH_CHECK(shape.is_array() && static_cast<int64_t>(shape.size()) <= kMaxTensorDims, BadInput,
               "{}: shape must be an array of at most {} extents", what, kMaxTensorDims);
  for (const auto& extent : shape) entry.info.shape.push_back(size_field(extent, what + ": shape"));
  const json& offsets = value["data_offsets"];
  HEARTH_CHECK(offsets.is_array() && offsets.size() == 2, BadInput, "{}: data_offsets must be [begin, end]",
               what);
  const int64_t begin = size_field(offsets[0], what + ": data_offsets");
  const int64_t end = size_field(offsets[1], what + ": data_offsets");
  HEARTH_CHECK(begin <= end && end <= file_bytes - data_begin, BadInput,
               "{}: data_offsets [{}, {}] leave the {} data bytes of the file", what, begin, end,
               file_bytes - data_begin);
  const int64_t expected = checked_mul(checked_numel(entry.info.shape, what), size_bytes(entry.info.dtype));
  HEARTH_CHECK(end - begin == expected, BadInput, "{}: {} bytes in the file, shape and dtype say {}", what,
               end - begin, expected);
  entry.offset = data_begin + begin;
  entry.bytes = expected;
  return entry;
}

// Extents must lie back to back: no holes to hide bytes in, no overlap, nothing behind the last.
void check_extents(const std::string& path, const std::vector<SafetensorsEntry>& entries, int64_t data_begin,
                   int64_t file_bytes) {
  int64_t position = data_begin;
  for (const auto& entry : entries) {
    HEARTH_CHECK(entry.offset == position, BadInput, "{}: tensor {} starts at data byte {}, expected {} ({})",
                 path, entry.info.name, entry.offset - data_begin, position - data_begin,
                 entry.offset < position ? "it overlaps its neighbour" : "bytes that belong to no tensor");
    position += entry.bytes;
  }
  HEARTH_CHECK(position == file_bytes, BadInput, "{}: {} bytes behind the last tensor", path,
               file_bytes - position);
}

std::map<std::string, std::string> parse_metadata(const std::string& path, const json& value) {
  HEARTH_CHECK(value.is_object(), BadInput, "{}: __metadata__ must be an object of strings", path);
  std::map<std::string, std::string> out;
  for (const auto& [key, text] : value.items()) {
    HEARTH_CHECK(text.is_string(), BadInput, "{}: __metadata__.{} must be a string", path, key);
    out[key] = text.get<std::string>();
  }
  return out;
}

int64_t little_endian(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | std::to_integer<uint64_t>(bytes[i]);
  return value > static_cast<uint64_t>(INT64_MAX) ? INT64_MAX : static_cast<int64_t>(value);
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

int64_t checked_numel(const std::vector<int64_t>& shape, std::string_view what) {
  int64_t count = 1;
  for (const int64_t extent : shape)
    HEARTH_CHECK(extent >= 0 && !__builtin_mul_overflow(count, extent, &count), BadInput,
                 "{}: shape {} has more elements than fit", what, shape_text(shape));
  return count;
}

SafetensorsFile::SafetensorsFile(FileSystem& fs, const std::string& path)
    : path_(path), file_(fs.open(path)) {
  const int64_t file_bytes = file_->size();
  HEARTH_CHECK(file_bytes >= kPrefix, BadInput, "{}: {} bytes, a safetensors file has at least {}", path,
               file_bytes, kPrefix);
  std::byte prefix[kPrefix];
  file_->read_at(0, prefix);
  const int64_t header_bytes = little_endian(prefix);
  HEARTH_CHECK(header_bytes <= kMaxSafetensorsHeader, BadInput,
               "{}: header of {} bytes, at most {} are accepted", path, header_bytes, kMaxSafetensorsHeader);
  HEARTH_CHECK(header_bytes <= file_bytes - kPrefix, BadInput,
               "{}: header of {} bytes, the file has {} after it", path, header_bytes, file_bytes - kPrefix);
  std::string header(static_cast<size_t>(header_bytes), '\0');
  file_->read_at(kPrefix, std::as_writable_bytes(std::span(header.data(), header.size())));
  HEARTH_CHECK(!header.empty() && header[0] == '{', BadInput, "{}: the header does not start with '{{'",
               path);
  const json root = parse_json_strict(header, path + ": header");
  HEARTH_CHECK(static_cast<int64_t>(root.size()) <= kMaxTensorsPerFile, BadInput,
               "{}: {} tensors, at most {}", path, root.size(), kMaxTensorsPerFile);
  const int64_t data_begin = kPrefix + header_bytes;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__")
      metadata_ = parse_metadata(path, value);
    else
      entries_.push_back(parse_entry(path, name, value, data_begin, file_bytes));
  }
  // Empty tensors share an offset with their neighbour; they come first so that the walk below sees no step
  // back.
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.bytes, a.info.name) < std::tie(b.offset, b.bytes, b.info.name);
  });
  check_extents(path, entries_, data_begin, file_bytes);
  for (size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].info.name, i);
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

void SafetensorsFile::read_elements(const SafetensorsEntry& entry, int64_t begin, int64_t end, DType dtype,
                                    void* out) const {
  HEARTH_REQUIRE(0 <= begin && begin <= end && end <= entry.info.numel(), "{}: elements [{}, {}) of {}",
                 entry.info.name, begin, end, entry.info.numel());
  read_converted(*file_, entry.offset, entry.info.dtype, begin, end, dtype, out);
}

void read_converted(const ReadableFile& file, int64_t offset, DType from, int64_t begin, int64_t end,
                    DType to, void* out) {
  auto* cursor = static_cast<std::byte*>(out);
  const int64_t width = size_bytes(from);
  if (from == to) {
    file.read_at(offset + begin * width, {cursor, static_cast<size_t>((end - begin) * width)});
    return;
  }
  const int64_t step = kChunkBytes / width;
  std::vector<std::byte> raw(static_cast<size_t>(std::min(step, end - begin) * width));
  for (int64_t at = begin; at < end; at += step) {
    const int64_t count = std::min(step, end - at);
    const std::span<std::byte> chunk(raw.data(), static_cast<size_t>(count * width));
    file.read_at(offset + at * width, chunk);
    convert(from, chunk.data(), to, cursor, count);
    cursor += count * size_bytes(to);
  }
}

void sort_for_alignment(std::vector<TensorInfo>& tensors) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const auto& a, const auto& b) { return size_bytes(a.dtype) > size_bytes(b.dtype); });
}

SafetensorsWriter::SafetensorsWriter(FileSystem& fs, const std::string& path, CreateMode mode,
                                     const std::vector<TensorInfo>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t end = 0;
  for (const auto& tensor : tensors) {
    const int64_t bytes = checked_mul(checked_numel(tensor.shape, tensor.name), size_bytes(tensor.dtype));
    HEARTH_REQUIRE(!tensor.name.empty() && static_cast<int64_t>(tensor.name.size()) <= kMaxTensorName &&
                       tensor.name != "__metadata__",
                   "{}: '{}' cannot be a tensor's name", path, tensor.name);
    HEARTH_REQUIRE(!header.contains(tensor.name), "{}: tensor {} given twice", path, tensor.name);
    HEARTH_REQUIRE(end % size_bytes(tensor.dtype) == 0,
                   "{}: tensor {} would lie unaligned; call sort_for_alignment", path, tensor.name);
    header[tensor.name] = {{"dtype", safetensors_name(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {end, checked_add(end, bytes)}}};
    entries_.push_back({tensor, end, bytes});
    end = checked_add(end, bytes);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // keeps tensor data 8-byte aligned in the file
  HEARTH_REQUIRE(static_cast<int64_t>(text.size()) <= kMaxSafetensorsHeader,
                 "{}: header of {} bytes, at most {}", path, text.size(), kMaxSafetensorsHeader);
  const int64_t data_begin = kPrefix + static_cast<int64_t>(text.size());
  for (auto& entry : entries_) entry.offset += data_begin;
  data_end_ = checked_add(data_begin, end);
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>((text.size() >> (8 * i)) & 0xff);
  file_ = fs.create(path, mode);
  append(std::as_bytes(std::span(prefix.data(), prefix.size())));
  append(std::as_bytes(std::span(text.data(), text.size())));
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  HEARTH_REQUIRE(static_cast<int64_t>(bytes.size()) <= data_end_ - position_,
                 "{}: {} bytes more than the header says", path_,
                 static_cast<int64_t>(bytes.size()) - (data_end_ - position_));
  file_->write(bytes);
  hash_.update(bytes);
  position_ += static_cast<int64_t>(bytes.size());
}

void SafetensorsWriter::sync() {
  HEARTH_REQUIRE(position_ == data_end_, "{}: {} of {} bytes were written", path_, position_, data_end_);
  file_->sync();
}

void SafetensorsWriter::close() {
  file_->close();
}

}  // namespace hearth
