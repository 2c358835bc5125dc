// A file read front to back, decompressed on the way: plain, gzip (several members) or Zstandard (several
// frames), by the ending of the name. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/file_system.h"

namespace hearth {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills `out` from the front and returns the bytes written; fewer than out.size() only at the end. Damaged
  // or truncated compression is Error{BadInput} with the file and the compressed offset.
  virtual size_t read(std::span<char> out) = 0;
  virtual int64_t raw_position() const = 0;  // bytes of the file consumed, for progress
};

enum class Compression { None, Gzip, Zstd };
Compression compression_of(const std::string& path);  // by .gz, .zst

std::unique_ptr<ByteSource> open_byte_source(FileSystem& fs, const std::string& path);

}  // namespace hearth
