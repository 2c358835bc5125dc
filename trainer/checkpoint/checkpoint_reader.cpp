#include "trainer/checkpoint/checkpoint_reader.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "trainer/checkpoint/safetensors.h"

namespace hearth {
namespace {

constexpr int64_t kMaxManifestBytes = int64_t{512} << 20;
constexpr int64_t kChunkBytes = int64_t{8} << 20;
// Stretches shorter than a page (columns of a sharded matrix) are cut out of one larger read.
constexpr int64_t kShortBytes = 4096, kWindowBytes = int64_t{1} << 20;
constexpr std::string_view kTokenizerPrefix = "tokenizer/";
constexpr std::string_view kTensorSuffix = ".safetensors";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Tensor files that the manifest does not know are the trace of mixed-up checkpoints; nothing is loaded then.
void refuse_foreign_tensor_files(FileSystem& fs, const std::string& directory, const Manifest& manifest) {
  std::set<std::string> known;
  for (const auto& file : manifest.files) known.insert(file.name);
  for (const auto& name : fs.list(directory))
    HEARTH_CHECK(!ends_with(name, kTensorSuffix) || known.count(name) != 0, Corrupt,
                 "{}: {} is not in the manifest; nothing was loaded. Move it away if it came from elsewhere",
                 directory, name);
}

std::unique_ptr<ReadableFile> open_sized(FileSystem& fs, const std::string& directory,
                                         const ManifestFile& file) {
  const std::string path = directory + "/" + file.name;
  HEARTH_CHECK(!fs.is_symlink(path), Corrupt, "{}: is a symbolic link; a checkpoint's files are its own",
               path);
  HEARTH_CHECK(fs.exists(path), Corrupt, "{}: {} is missing", directory, file.name);
  auto opened = fs.open(path);
  HEARTH_CHECK(opened->size() == file.bytes, Corrupt, "{}: {} has {} of {} bytes", directory, file.name,
               opened->size(), file.bytes);
  return opened;
}

}  // namespace

void verify_file(FileSystem& fs, const std::string& directory, const Manifest& manifest,
                 const ManifestFile& file) {
  const auto opened = open_sized(fs, directory, file);
  Xxh3Stream hash;
  std::vector<std::byte> chunk(static_cast<size_t>(std::min(kChunkBytes, std::max<int64_t>(file.bytes, 1))));
  for (int64_t at = 0; at < file.bytes; at += kChunkBytes) {
    const std::span<std::byte> part(chunk.data(),
                                    static_cast<size_t>(std::min(kChunkBytes, file.bytes - at)));
    opened->read_at(at, part);
    hash.update(part);
  }
  const auto found = hash.hex128();
  if (found == file.digest) return;
  std::string holds;
  for (const auto& tensor : manifest.tensors)
    for (const auto& slice : tensor.slices)
      if (&manifest.files[static_cast<size_t>(slice.file)] == &file && holds.empty())
        holds = fmt::format(" (holds tensor {} and others)", tensor.info.name);
  fail(ErrorKind::Corrupt,
       "{}: {} has digest {}, the manifest says {}{}: its bytes changed after it was written", directory,
       file.name, found, file.digest, holds);
}

std::unique_ptr<CheckpointReader> CheckpointReader::open(FileSystem& fs, const std::string& directory,
                                                         Verify verify) {
  HEARTH_CHECK(fs.is_directory(directory), Corrupt, "{}: no such folder", directory);
  const std::string path = directory + "/" + std::string(kManifestName);
  HEARTH_CHECK(fs.exists(path), Corrupt, "{}: no {}: the checkpoint was never committed", directory,
               kManifestName);
  HEARTH_CHECK(!fs.is_symlink(path), Corrupt, "{}: is a symbolic link", path);
  std::unique_ptr<CheckpointReader> reader(new CheckpointReader(fs, directory));
  try {
    reader->manifest_ = parse_manifest(fs.read_text(path, kMaxManifestBytes), path);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput) throw;
    throw Error(ErrorKind::Corrupt,
                error.message());  // a size that overflows: here the file is ours, so it is damage
  }
  const Manifest& manifest = reader->manifest_;
  refuse_foreign_tensor_files(fs, directory, manifest);
  for (const auto& file : manifest.files) {
    auto opened = open_sized(fs, directory, file);
    if (!ends_with(file.name, kTensorSuffix)) opened.reset();
    reader->files_.push_back(std::move(opened));
    if (verify == Verify::Everything) verify_file(fs, directory, manifest, file);
  }
  for (const auto& tensor : manifest.tensors) {
    for (const auto& slice : tensor.slices)
      HEARTH_CHECK(reader->files_[static_cast<size_t>(slice.file)] != nullptr, Corrupt,
                   "{}: tensor {} lies in {}, which is no tensor file", directory, tensor.info.name,
                   manifest.files[static_cast<size_t>(slice.file)].name);
    reader->index_.emplace(tensor.info.name, reader->infos_.size());
    reader->infos_.push_back(tensor.info);
  }
  return reader;
}

const ManifestTensor& CheckpointReader::tensor(const std::string& name) const {
  const auto found = index_.find(name);
  HEARTH_CHECK(found != index_.end(), Corrupt, "{}: has no tensor {}", describe(), name);
  return manifest_.tensors[found->second];
}

const TensorInfo& CheckpointReader::info(const std::string& name) const {
  return tensor(name).info;
}

std::string CheckpointReader::describe() const {
  return fmt::format("checkpoint {} (step {})", directory_, manifest_.identity.step);
}

void CheckpointReader::read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                                     void* out) const {
  const ManifestTensor& entry = tensor(name);
  HEARTH_REQUIRE(0 <= begin && begin <= end && end <= entry.info.numel(), "{}: elements [{}, {}) of {}", name,
                 begin, end, entry.info.numel());
  const DType from = entry.info.dtype;
  const int64_t width = size_bytes(from), out_width = size_bytes(dtype);
  auto* target = static_cast<std::byte*>(out);
  std::vector<std::byte> window;
  for (const auto& slice : entry.slices) {
    const ReadableFile& file = *files_[static_cast<size_t>(slice.file)];
    const int64_t held = slice.end - slice.begin;
    int64_t window_begin = 0, window_end = 0;  // elements of the slice that `window` holds
    for_each_stretch(entry.info.shape, slice, begin, end, [&](int64_t first, int64_t last, int64_t at) {
      std::byte* place = target + (at - begin) * out_width;
      if ((last - first) * width >= kShortBytes) {  // long stretches go straight to their place
        read_converted(file, slice.offset, from, first, last, dtype, place);
        return;
      }
      if (first < window_begin || last > window_end) {  // short ones are cut out of a larger read
        window_begin = first;
        window_end = std::min({held, first + kWindowBytes / width, first + (end - at)});
        window.resize(static_cast<size_t>((window_end - window_begin) * width));
        file.read_at(slice.offset + window_begin * width, window);
      }
      convert(from, window.data() + (first - window_begin) * width, dtype, place, last - first);
    });
  }
}

const ManifestFile* CheckpointReader::file(const std::string& name) const {
  for (const auto& entry : manifest_.files)
    if (entry.name == name) return &entry;
  return nullptr;
}

bool CheckpointReader::has_file(const std::string& name) const {
  return file(name) != nullptr;
}

std::string CheckpointReader::read_file(const std::string& name) const {
  const ManifestFile* entry = file(name);
  HEARTH_CHECK(entry != nullptr, Corrupt, "{}: has no file {}", describe(), name);
  const auto text = fs_.read_text(path_of(*entry));
  const auto found = xxh3_128_hex(text);
  HEARTH_CHECK(found == entry->digest, Corrupt, "{}: {} has digest {}, the manifest says {}", directory_,
               name, found, entry->digest);
  return text;
}

std::vector<std::string> CheckpointReader::tokenizer_files() const {
  std::vector<std::string> names;
  for (const auto& entry : manifest_.files)
    if (entry.name.substr(0, kTokenizerPrefix.size()) == kTokenizerPrefix)
      names.push_back(entry.name.substr(kTokenizerPrefix.size()));
  return names;
}

std::string CheckpointReader::tokenizer_directory() const {
  return tokenizer_files().empty() ? "" : directory_ + "/tokenizer";
}

}  // namespace hearth
