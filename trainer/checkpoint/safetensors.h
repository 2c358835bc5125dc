// The safetensors format (8-byte little-endian header length, JSON header, raw tensor bytes), read and
// written by range, so that a file larger than memory is normal. Specification: the safetensors project's
// README. Accepting a file implies: tensor extents lie back to back from the first to the last byte after the
// header, each length equals product(shape) x element size, names are unique UTF-8 of at most 512 bytes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file_system.h"
#include "base/hash.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth {

constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // the reference implementation's cap
constexpr int64_t kMaxTensorsPerFile = 1'000'000;
constexpr int64_t kMaxTensorDims = 8;
constexpr int64_t kMaxTensorName = 512;

struct SafetensorsEntry {
  TensorInfo info;
  int64_t offset = 0;  // of the first byte, in the file
  int64_t bytes = 0;
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

// Row-major element count with overflow check; `what` names the tensor in the Error{BadInput}.
int64_t checked_numel(const std::vector<int64_t>& shape, std::string_view what);

// An open file. Safe for concurrent reads. Throws Error{BadInput} for a malformed file, Error{Io} from the
// disk.
class SafetensorsFile {
 public:
  SafetensorsFile(FileSystem& fs, const std::string& path);

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by offset
  const SafetensorsEntry* find(const std::string& name) const;               // null: not there
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Row-major elements [begin, end) of the entry, converted to `dtype`, into `out`.
  void read_elements(const SafetensorsEntry& entry, int64_t begin, int64_t end, DType dtype, void* out) const;

 private:
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

// Reads elements [begin, end) of a tensor stored at byte `offset` of `file`; the shared core of every reader
// here. Converts in pieces of a few MiB. `out` holds (end - begin) x size_bytes(to).
void read_converted(const ReadableFile& file, int64_t offset, DType from, int64_t begin, int64_t end,
                    DType to, void* out);

// Orders tensors so that each lies aligned to its element size, which readers that map the file rely on
// (largest element first, otherwise stable). Call it before SafetensorsWriter.
void sort_for_alignment(std::vector<TensorInfo>& tensors);

// Streams one file: the header is fixed by the constructor, then the tensors' bytes follow in the order
// given. Not thread-safe. Destroying an unfinished writer closes the file and leaves it incomplete.
class SafetensorsWriter {
 public:
  // Throws Error{Usage} for a repeated name or a tensor that would lie unaligned.
  SafetensorsWriter(FileSystem& fs, const std::string& path, CreateMode mode,
                    const std::vector<TensorInfo>& tensors,
                    const std::map<std::string, std::string>& metadata = {});

  // The next bytes of the tensor data, any chunking.
  void append(std::span<const std::byte> bytes);
  // Checks that all bytes came, makes them durable and closes. A failed fsync or close is final for the file.
  void sync();
  void close();

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in the order given
  int64_t file_bytes() const { return data_end_; }                           // of the finished file
  std::string digest() const { return hash_.hex128(); }  // XXH3-128 of everything written so far

 private:
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  std::vector<SafetensorsEntry> entries_;
  Xxh3Stream hash_;
  int64_t position_ = 0, data_end_ = 0;
};

}  // namespace hearth
