#include "trainer/interchange/zip_members.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/error.h"

namespace hearth {
namespace {

constexpr int64_t kMaxDirectory = int64_t{256} << 20;
constexpr int64_t kEndBytes = 22, kLocatorBytes = 20, kEnd64Bytes = 56, kEntryBytes = 46, kLocalBytes = 30;
constexpr uint32_t kEndMagic = 0x06054b50, kLocatorMagic = 0x07064b50, kEnd64Magic = 0x06064b50,
                   kEntryMagic = 0x02014b50, kLocalMagic = 0x04034b50;

class Zip {
 public:
  Zip(const ReadableFile& file, const std::string& path) : file_(file), path_(path), size_(file.size()) {}

  std::map<std::string, ZipMember> members() {
    find_directory();
    const std::string directory = read(directory_offset_, directory_bytes_);
    std::map<std::string, ZipMember> out;
    size_t at = 0;
    for (int64_t i = 0; i < count_; ++i) {
      check(at + kEntryBytes <= directory.size() && number<uint32_t>(directory, at) == kEntryMagic,
            "has a damaged directory");
      const size_t name = number<uint16_t>(directory, at + 28), extra = number<uint16_t>(directory, at + 30),
                   comment = number<uint16_t>(directory, at + 32);
      check(at + kEntryBytes + name + extra + comment <= directory.size(), "has a damaged directory");
      const std::string key = directory.substr(at + kEntryBytes, name);
      check((number<uint16_t>(directory, at + 8) & 1) == 0 && number<uint16_t>(directory, at + 10) == 0,
            "has a compressed or encrypted member; PyTorch writes none");
      const bool fresh = out.emplace(key, member(directory, at, name, extra)).second;
      check(fresh, "has a name twice");
      at += kEntryBytes + name + extra + comment;
    }
    return out;
  }

 private:
  void check(bool holds, std::string_view what) const {
    HEARTH_CHECK(holds, BadInput, "{}: is not a PyTorch file: the zip archive {}", path_, what);
  }
  template <class T>
  static T number(std::string_view bytes, size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    return value;
  }
  std::string read(int64_t offset, int64_t bytes) const {
    check(offset >= 0 && bytes >= 0 && offset <= size_ && bytes <= size_ - offset, "is cut off");
    std::string out(static_cast<size_t>(bytes), '\0');
    file_.read_at(offset, std::as_writable_bytes(std::span(out)));
    return out;
  }
  int64_t size64(uint64_t value) const {
    check(value <= static_cast<uint64_t>(size_), "has a size beyond the file");
    return static_cast<int64_t>(value);
  }

  // The end record lies in the last 22 bytes, or before a comment of up to 65535.
  void find_directory() {
    const int64_t tail_bytes = std::min<int64_t>(size_, kEndBytes + 65535);
    const std::string tail = read(size_ - tail_bytes, tail_bytes);
    int64_t at = tail_bytes - kEndBytes;
    while (at >= 0 && number<uint32_t>(tail, static_cast<size_t>(at)) != kEndMagic) --at;
    check(at >= 0, "has no end record");
    const auto end = static_cast<size_t>(at);
    count_ = number<uint16_t>(tail, end + 10);
    directory_bytes_ = number<uint32_t>(tail, end + 12);
    directory_offset_ = number<uint32_t>(tail, end + 16);
    if (at >= kLocatorBytes && number<uint32_t>(tail, end - kLocatorBytes) == kLocatorMagic) {
      const std::string big = read(size64(number<uint64_t>(tail, end - kLocatorBytes + 8)), kEnd64Bytes);
      check(number<uint32_t>(big, 0) == kEnd64Magic, "has a damaged zip64 record");
      count_ = size64(number<uint64_t>(big, 32));
      directory_bytes_ = size64(number<uint64_t>(big, 40));
      directory_offset_ = size64(number<uint64_t>(big, 48));
    }
    check(directory_bytes_ <= kMaxDirectory && count_ <= directory_bytes_ / kEntryBytes,
          "has an absurd directory");
  }

  // Sizes of 2^32 - 1 stand in a zip64 field instead, in the order uncompressed, compressed, offset.
  ZipMember member(std::string_view directory, size_t at, size_t name, size_t extra) const {
    uint64_t sizes[3] = {number<uint32_t>(directory, at + 24), number<uint32_t>(directory, at + 20),
                         number<uint32_t>(directory, at + 42)};
    const std::string_view field = directory.substr(at + kEntryBytes + name, extra);
    for (size_t f = 0; f + 4 <= field.size();) {
      const size_t bytes = number<uint16_t>(field, f + 2);
      check(f + 4 + bytes <= field.size(), "has a damaged directory");
      size_t next = f + 4;
      if (number<uint16_t>(field, f) == 1) {
        for (uint64_t& size : sizes) {
          if (size != 0xffffffffu) continue;
          check(next + 8 <= f + 4 + bytes, "has a damaged zip64 field");
          size = number<uint64_t>(field, next);
          next += 8;
        }
      }
      f += 4 + bytes;
    }
    check(sizes[0] == sizes[1], "has a compressed member");
    const int64_t header = size64(sizes[2]);
    const std::string local = read(header, kLocalBytes);
    check(number<uint32_t>(local, 0) == kLocalMagic, "has a damaged member");
    ZipMember out;
    out.offset = header + kLocalBytes + number<uint16_t>(local, 26) + number<uint16_t>(local, 28);
    out.bytes = size64(sizes[0]);
    check(out.offset <= size_ && out.bytes <= size_ - out.offset, "has a member that leaves the file");
    return out;
  }

  const ReadableFile& file_;
  const std::string& path_;
  int64_t size_ = 0, count_ = 0, directory_offset_ = 0, directory_bytes_ = 0;
};

}  // namespace

std::map<std::string, ZipMember> read_zip_members(const ReadableFile& file, const std::string& path) {
  return Zip(file, path).members();
}

}  // namespace hearth
