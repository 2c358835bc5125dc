#include "trainer/checkpoint/manifest.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/hash.h"
#include "base/strict_json.h"
#include "trainer/checkpoint/safetensors.h"

namespace hearth {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kFormatName = "hearth-checkpoint";
constexpr std::string_view kDigestKey = " \"manifest_xxh3_128\": \"";
constexpr std::string_view kDigestEnd = "\"\n}\n";
constexpr size_t kDigestDigits = 32;
constexpr size_t kMaxFiles = 1'000'000;
constexpr size_t kMaxBoxesPerTensor = 4096;  // the pairwise disjointness test below stays in the milliseconds

// Reads one object strictly: every key must be asked for, none may be left over.
class ObjectReader {
 public:
  ObjectReader(const json& value, std::string what, std::initializer_list<const char*> keys)
      : value_(value), what_(std::move(what)) {
    HEARTH_CHECK(value.is_object(), Corrupt, "{}: expected an object", what_);
    for (const char* key : keys)
      HEARTH_CHECK(value.contains(key), Corrupt, "{}: key {} is missing", what_, key);
    for (const auto& [key, unused] : value.items())
      HEARTH_CHECK(std::find(keys.begin(), keys.end(), key) != keys.end(), Corrupt, "{}: unknown key {}",
                   what_, key.substr(0, 80));
  }
  int64_t size(const char* key) const { return as_size(value_[key], key); }
  std::string text(const char* key) const {
    HEARTH_CHECK(value_[key].is_string(), Corrupt, "{}: {} must be a string", what_, key);
    return value_[key].get<std::string>();
  }
  const json& array(const char* key, size_t most) const {
    HEARTH_CHECK(value_[key].is_array() && value_[key].size() <= most, Corrupt,
                 "{}: {} must be an array of at most {} entries", what_, key, most);
    return value_[key];
  }
  std::vector<int64_t> sizes(const char* key) const {
    std::vector<int64_t> out;
    for (const auto& entry : array(key, static_cast<size_t>(kMaxTensorDims)))
      out.push_back(as_size(entry, key));
    return out;
  }
  const std::string& what() const { return what_; }

 private:
  int64_t as_size(const json& value, const char* key) const {
    HEARTH_CHECK(value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX),
                 Corrupt, "{}: {} must be a non-negative integer below 2^63", what_, key);
    return value.get<int64_t>();
  }
  const json& value_;
  std::string what_;
};

ordered_json to_json(const ManifestTensor& tensor) {
  ordered_json slices = ordered_json::array();
  for (const auto& slice : tensor.slices)
    slices.push_back(ordered_json{{"file", slice.file},
                                  {"offset", slice.offset},
                                  {"box_offset", slice.box.offset},
                                  {"extent", slice.box.extent},
                                  {"range", {slice.begin, slice.end}}});
  return ordered_json{{"name", tensor.info.name},
                      {"dtype", safetensors_name(tensor.info.dtype)},
                      {"shape", tensor.info.shape},
                      {"slices", std::move(slices)}};
}

// The part of a slice that does not depend on other slices: inside its tensor and inside its file.
void check_slice(const ManifestSlice& slice, const TensorInfo& tensor, const std::vector<ManifestFile>& files,
                 const std::string& what) {
  HEARTH_CHECK(slice.file < static_cast<int64_t>(files.size()), Corrupt, "{}: file number {} of {}", what,
               slice.file, files.size());
  const size_t dims = tensor.shape.size();
  HEARTH_CHECK(slice.box.offset.size() == dims && slice.box.extent.size() == dims, Corrupt,
               "{}: a slice has {} and {} dimensions, the tensor {}", what, slice.box.offset.size(),
               slice.box.extent.size(), dims);
  for (size_t d = 0; d < dims; ++d)
    HEARTH_CHECK(slice.box.extent[d] <= tensor.shape[d] &&
                     slice.box.offset[d] <= tensor.shape[d] - slice.box.extent[d],
                 Corrupt, "{}: slice [{}, +{}) leaves dimension {} of extent {}", what, slice.box.offset[d],
                 slice.box.extent[d], d, tensor.shape[d]);
  // No overflow below: extents are at most the tensor's, whose product was checked.
  const int64_t elements = checked_numel(slice.box.extent, what);
  HEARTH_CHECK(slice.begin <= slice.end && slice.end <= elements, Corrupt,
               "{}: range [{}, {}) of a box of {} elements", what, slice.begin, slice.end, elements);
  const ManifestFile& file = files[static_cast<size_t>(slice.file)];
  const int64_t bytes = (slice.end - slice.begin) * size_bytes(tensor.dtype);
  HEARTH_CHECK(bytes <= file.bytes && slice.offset <= file.bytes - bytes, Corrupt,
               "{}: slice of {} bytes at {} leaves {} of {} bytes", what, bytes, slice.offset, file.name,
               file.bytes);
}

ManifestTensor parse_tensor(const json& value, const std::vector<ManifestFile>& files,
                            const std::string& where) {
  const ObjectReader reader(value, where + ": a tensor", {"name", "dtype", "shape", "slices"});
  ManifestTensor tensor;
  tensor.info.name = reader.text("name");
  HEARTH_CHECK(!tensor.info.name.empty() && static_cast<int64_t>(tensor.info.name.size()) <= kMaxTensorName &&
                   tensor.info.name.find('\0') == std::string::npos,
               Corrupt, "{}: a tensor's name is empty, longer than {} bytes, or holds NUL", where,
               kMaxTensorName);
  const std::string what = where + ": tensor " + tensor.info.name;
  const auto dtype = dtype_from_safetensors(reader.text("dtype"));
  HEARTH_CHECK(dtype, Corrupt, "{}: unknown dtype {}", what, reader.text("dtype").substr(0, 80));
  tensor.info.dtype = *dtype;
  tensor.info.shape = reader.sizes("shape");
  checked_mul(checked_numel(tensor.info.shape, what), size_bytes(*dtype));
  for (const auto& entry : reader.array("slices", kMaxFiles)) {
    const ObjectReader fields(entry, what + ": a slice", {"file", "offset", "box_offset", "extent", "range"});
    const auto range = fields.sizes("range");
    HEARTH_CHECK(range.size() == 2, Corrupt, "{}: range must be [begin, end)", what);
    const ManifestSlice slice{.file = fields.size("file"),
                              .offset = fields.size("offset"),
                              .box = {fields.sizes("box_offset"), fields.sizes("extent")},
                              .begin = range[0],
                              .end = range[1]};
    check_slice(slice, tensor.info, files, what);
    tensor.slices.push_back(slice);
  }
  require_exact_cover(tensor, where);
  return tensor;
}

ManifestFile parse_file(const json& value, const std::string& where) {
  const ObjectReader reader(value, where + ": a file", {"name", "bytes", "xxh3_128"});
  ManifestFile file{reader.text("name"), reader.size("bytes"), reader.text("xxh3_128")};
  HEARTH_CHECK(is_safe_file_name(file.name) && file.name != kManifestName, Corrupt,
               "{}: refused file name '{}': names may not leave the checkpoint's folder", where,
               file.name.substr(0, 80));
  HEARTH_CHECK(file.digest.size() == kDigestDigits &&
                   file.digest.find_first_not_of("0123456789abcdef") == std::string::npos,
               Corrupt, "{}: {}: malformed digest", where, file.name);
  return file;
}

// Checks the manifest's own digest and returns the JSON text.
void check_own_digest(std::string_view text, const std::string& what) {
  const size_t tail = kDigestKey.size() + kDigestDigits + kDigestEnd.size();
  const bool framed = text.size() > tail &&
                      text.substr(text.size() - tail, kDigestKey.size()) == kDigestKey &&
                      text.substr(text.size() - kDigestEnd.size()) == kDigestEnd;
  HEARTH_CHECK(framed, Corrupt,
               "{}: does not end with its own digest: truncated or not a manifest ({} bytes)", what,
               text.size());
  const auto body = text.substr(0, text.size() - tail);
  const auto stored = text.substr(text.size() - tail + kDigestKey.size(), kDigestDigits);
  const auto found = xxh3_128_hex(body);
  HEARTH_CHECK(stored == found, Corrupt, "{}: digest of the content is {}, the manifest says {}", what, found,
               stored);
}

bool boxes_overlap(const Box& a, const Box& b) {
  for (size_t d = 0; d < a.offset.size(); ++d)
    if (a.offset[d] + a.extent[d] <= b.offset[d] || b.offset[d] + b.extent[d] <= a.offset[d]) return false;
  return true;
}

}  // namespace

bool is_safe_file_name(std::string_view name) {
  constexpr std::string_view kFolder = "tokenizer/";
  if (name.substr(0, kFolder.size()) == kFolder) name.remove_prefix(kFolder.size());
  const bool plain =
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
      std::string_view::npos;
  return plain && !name.empty() && name.size() <= 200 && name[0] != '.';
}

void require_exact_cover(const ManifestTensor& tensor, const std::string& what) {
  std::map<std::pair<std::vector<int64_t>, std::vector<int64_t>>, std::vector<std::pair<int64_t, int64_t>>>
      boxes;
  int64_t elements = 0;
  for (const auto& slice : tensor.slices) {
    if (slice.begin == slice.end) continue;
    elements = checked_add(elements, slice.end - slice.begin);
    boxes[{slice.box.offset, slice.box.extent}].emplace_back(slice.begin, slice.end);
  }
  HEARTH_CHECK(boxes.size() <= kMaxBoxesPerTensor, Corrupt, "{}: tensor {} lies in {} boxes, at most {}",
               what, tensor.info.name, boxes.size(), kMaxBoxesPerTensor);
  HEARTH_CHECK(elements == tensor.info.numel(), Corrupt,
               "{}: slices of tensor {} hold {} elements, shape {} has {}", what, tensor.info.name, elements,
               shape_text(tensor.info.shape), tensor.info.numel());
  for (auto a = boxes.begin(); a != boxes.end(); ++a) {
    std::sort(a->second.begin(), a->second.end());
    for (size_t i = 1; i < a->second.size(); ++i)
      HEARTH_CHECK(a->second[i - 1].second <= a->second[i].first, Corrupt,
                   "{}: two slices of tensor {} hold element {} of the box at {}", what, tensor.info.name,
                   a->second[i].first, shape_text(a->first.first));
    for (auto b = std::next(a); b != boxes.end(); ++b)
      HEARTH_CHECK(!boxes_overlap({a->first.first, a->first.second}, {b->first.first, b->first.second}),
                   Corrupt, "{}: slices of tensor {} at {} and {} overlap", what, tensor.info.name,
                   shape_text(a->first.first), shape_text(b->first.first));
  }
}

std::string serialize(const Manifest& manifest) {
  const ordered_json head{{"format", kFormatName},
                          {"format_version", kCheckpointFormatVersion},
                          {"step", manifest.identity.step},
                          {"attempt", manifest.attempt},
                          {"world_size", manifest.world_size},
                          {"mesh", manifest.identity.mesh},
                          {"config_hash", manifest.identity.config_hash},
                          {"data_fingerprint", manifest.identity.data_fingerprint},
                          {"tokenizer_digest", manifest.identity.tokenizer_digest}};
  std::string text = head.dump(1);
  text.resize(text.size() - 2);  // the closing "\n}"
  text += ",\n \"files\": [";
  std::string separator = "\n  ";
  for (const auto& file : manifest.files) {
    text += separator +
            ordered_json{{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.digest}}.dump();
    separator = ",\n  ";
  }
  text += "\n ],\n \"tensors\": [";
  separator = "\n  ";
  for (const auto& tensor : manifest.tensors) {
    text += separator + to_json(tensor).dump();
    separator = ",\n  ";
  }
  text += "\n ],\n";
  const std::string digest = xxh3_128_hex(text);
  return text + std::string(kDigestKey) + digest + std::string(kDigestEnd);
}

Manifest parse_manifest(std::string_view text, const std::string& what) {
  check_own_digest(text, what);
  const json root = parse_json_strict(text, what, {.kind = ErrorKind::Corrupt});
  // The version decides which keys to expect, so it is looked at first.
  HEARTH_CHECK(root.is_object() && root.value("format", json()) == kFormatName, Corrupt,
               "{}: not a Hearth checkpoint (format {})", what,
               root.is_object() ? root.value("format", json()).dump().substr(0, 80) : "missing");
  HEARTH_CHECK(root.value("format_version", json()) == kCheckpointFormatVersion, Corrupt,
               "{}: format version {}, this Hearth reads version {}; use the Hearth that wrote it, or newer",
               what, root.value("format_version", json()).dump().substr(0, 80), kCheckpointFormatVersion);
  const ObjectReader reader(
      root, what,
      {"format", "format_version", "step", "attempt", "world_size", "mesh", "config_hash", "data_fingerprint",
       "tokenizer_digest", "files", "tensors", "manifest_xxh3_128"});
  Manifest manifest;
  manifest.identity = {reader.size("step"), reader.text("mesh"), reader.text("config_hash"),
                       reader.text("data_fingerprint"), reader.text("tokenizer_digest")};
  manifest.attempt = reader.size("attempt");
  manifest.world_size = reader.size("world_size");
  std::set<std::string> names;
  for (const auto& entry : reader.array("files", kMaxFiles)) {
    manifest.files.push_back(parse_file(entry, what));
    HEARTH_CHECK(names.insert(manifest.files.back().name).second, Corrupt, "{}: file {} is listed twice",
                 what, manifest.files.back().name);
  }
  HEARTH_CHECK(names.count(std::string(kStateName)) == 1, Corrupt, "{}: {} is not listed", what, kStateName);
  for (const auto& entry : reader.array("tensors", static_cast<size_t>(kMaxTensorsPerFile))) {
    manifest.tensors.push_back(parse_tensor(entry, manifest.files, what));
    const size_t count = manifest.tensors.size();
    HEARTH_CHECK(count < 2 || manifest.tensors[count - 2].info.name < manifest.tensors[count - 1].info.name,
                 Corrupt, "{}: tensor {} is listed twice or out of order", what,
                 manifest.tensors[count - 1].info.name);
  }
  return manifest;
}

void for_each_stretch(const std::vector<int64_t>& shape, const ManifestSlice& slice, int64_t begin,
                      int64_t end, const StretchVisitor& visit) {
  if (slice.begin >= slice.end || begin >= end) return;
  // The box is a row of runs, each contiguous in the tensor: trailing whole dimensions and the one before
  // them.
  size_t split = shape.size();
  int64_t run = 1;
  while (split > 0) {
    --split;
    run *= slice.box.extent[split];
    if (slice.box.extent[split] != shape[split]) break;
  }
  const auto run_start = [&](int64_t r) {  // position in the tensor of the box's run number r; rises with r
    int64_t position = 0, stride = 1;
    for (size_t d = shape.size(); d-- > 0; stride *= shape[d]) {
      int64_t index = slice.box.offset[d];
      if (d < split) {
        index += r % slice.box.extent[d];
        r /= slice.box.extent[d];
      }
      position += index * stride;
    }
    return position;
  };
  int64_t low = slice.begin / run, high = (slice.end - 1) / run;
  const int64_t last = high;
  while (low < high) {  // the first run that reaches beyond `begin`
    const int64_t middle = low + (high - low) / 2;
    if (run_start(middle) + run > begin)
      high = middle;
    else
      low = middle + 1;
  }
  for (int64_t r = low; r <= last; ++r) {
    const int64_t start = run_start(r);
    if (start >= end) break;
    const int64_t first = std::max({int64_t{0}, slice.begin - r * run, begin - start});
    const int64_t stop = std::min({run, slice.end - r * run, end - start});
    if (first < stop) visit(r * run + first - slice.begin, r * run + stop - slice.begin, start + first);
  }
}

}  // namespace hearth
