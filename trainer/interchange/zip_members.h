// The members of a zip archive that are stored uncompressed, as byte ranges of the file (what PyTorch writes,
// so that its readers can map tensors). Zip64 included. Format: PKWARE's APPNOTE. Checksums are not verified.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/file_system.h"

namespace hearth {

struct ZipMember {
  int64_t offset = 0;  // of the first data byte, in the file
  int64_t bytes = 0;
};

// Throws Error{BadInput} for what is no zip archive, is cut off, has compressed or encrypted members, a name
// twice, or a member that leaves the file.
std::map<std::string, ZipMember> read_zip_members(const ReadableFile& file, const std::string& path);

}  // namespace hearth
