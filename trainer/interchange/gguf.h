// GGUF files, version 2 and 3, little-endian (ggml's format; field names as in its public specification).
// Everything in the file is untrusted: counts, strings, types, alignment and offsets are checked against the
// file's size before anything is allocated from them. Weights are read dequantised to fp32, piece by piece.
// Thread-safe after open. Errors: Error{BadInput} with the file and the offset or name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/file_system.h"
#include "trainer/interchange/gguf_blocks.h"

namespace hearth {

// A metadata value. Integers of every width arrive as int64_t (a uint64 beyond that is refused), floats as
// double.
using GgufArray = std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;
using GgufValue = std::variant<int64_t, double, bool, std::string, GgufArray>;

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::F32;
  std::vector<int64_t> shape;  // row-major order (the file lists dimensions fastest first)
  int64_t offset = 0;          // bytes from the start of the file
  int64_t numel() const;
};

// Header, metadata and tensor directory; the data stay on disk.
class GgufFile {
 public:
  GgufFile(FileSystem& fs, const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find(const std::string& name) const;

  // Metadata by type; throw where the key is missing (no default given) or has another type.
  int64_t integer(const std::string& key) const;
  int64_t integer_or(const std::string& key, int64_t fallback) const;
  double number(const std::string& key) const;
  double number_or(const std::string& key, double fallback) const;
  std::string text(const std::string& key) const;
  std::string text_or(const std::string& key, const std::string& fallback) const;
  bool flag_or(const std::string& key, bool fallback) const;
  const GgufArray* array(const std::string& key) const;  // null where missing

  // Elements [begin, end) of the flattened tensor, dequantised; any begin and end.
  void read(const GgufTensor& tensor, int64_t begin, int64_t end, float* out) const;

 private:
  const GgufValue* value(const std::string& key) const;
  std::string path_;
  std::shared_ptr<ReadableFile> file_;
  std::map<std::string, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
};

// Does the file start with the magic bytes? False for a folder and for what is not there.
bool is_gguf(FileSystem& fs, const std::string& path);

}  // namespace hearth
