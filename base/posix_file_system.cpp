#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/file_system.h"

namespace hearth {
namespace {

// Throws with errno's name; a full disk or quota is a kind of its own because the advice differs.
[[noreturn]] void fail_errno(std::string_view doing, const std::string& path) {
  const int code = errno;
  const bool full = code == ENOSPC || code == EDQUOT || code == EFBIG;
  const char* symbol = strerrorname_np(code);
  fail(full ? ErrorKind::NoSpace : ErrorKind::Io, "cannot {} {}: {} ({})", doing, path, std::strerror(code),
       symbol ? symbol : "unknown errno");
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  void write(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_.get(), bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_errno("write", path_);
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }
  void sync() override {
    if (::fsync(fd_.get()) != 0) fail_errno("fsync", path_);
  }
  void close() override {
    if (::close(fd_.release()) != 0) fail_errno("close", path_);
  }

 private:
  std::string path_;
  Descriptor fd_;
};

class PosixReadableFile final : public ReadableFile {
 public:
  PosixReadableFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {
    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) fail_errno("stat", path_);
    HEARTH_CHECK(S_ISREG(info.st_mode), Io, "cannot read {}: not a regular file", path_);
    size_ = info.st_size;
  }
  int64_t size() const override { return size_; }
  void read_at(int64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t got = ::pread(fd_.get(), out.data(), out.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_errno("read", path_);
      HEARTH_CHECK(got > 0, Io, "{}: file ends at byte {}, {} more bytes expected", path_, offset,
                   out.size());
      out = out.subspan(static_cast<size_t>(got));
      offset += got;
    }
  }

 private:
  std::string path_;
  Descriptor fd_;
  int64_t size_ = 0;
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const std::string& path, CreateMode mode) override {
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC;
    if (mode == CreateMode::Truncate) flags |= O_TRUNC;
    if (mode == CreateMode::Exclusive) flags |= O_EXCL;
    if (mode == CreateMode::Append) flags |= O_APPEND;
    const int fd = ::open(path.c_str(), flags, 0644);
    if (fd < 0) fail_errno("create", path);
    return std::make_unique<PosixWritableFile>(path, fd);
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail_errno("open", path);
    return std::make_unique<PosixReadableFile>(path, fd);
  }
  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail_errno("rename " + from + " to", to);
  }
  void remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) fail_errno("remove", path);
  }
  void remove_all(const std::string& path) override {
    std::error_code code;
    std::filesystem::remove_all(path, code);
    if (code) {
      errno = code.value();
      fail_errno("remove", path);
    }
  }
  void create_directories(const std::string& path) override {
    std::error_code code;
    std::filesystem::create_directories(path, code);
    if (code) {
      errno = code.value();
      fail_errno("create folder", path);
    }
  }
  void sync_directory(const std::string& path) override {
    const Descriptor fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0) fail_errno("open folder", path);
    if (::fsync(fd.get()) != 0) fail_errno("fsync folder", path);
  }
  bool exists(const std::string& path) override {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0;
  }
  bool is_directory(const std::string& path) override {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  }
  bool is_symlink(const std::string& path) override {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode);
  }
  FileStamp stamp(const std::string& path) override {
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) fail_errno("stat", path);
    return {S_ISREG(info.st_mode), info.st_size, info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec};
  }
  void create_symlink(const std::string& target, const std::string& path) override {
    if (::symlink(target.c_str(), path.c_str()) != 0) fail_errno("link " + target + " as", path);
  }
  std::string read_symlink(const std::string& path) override {
    std::error_code code;
    const auto target = std::filesystem::read_symlink(path, code);
    if (code) {
      errno = code.value();
      fail_errno("read link", path);
    }
    return target.string();
  }
  std::vector<std::string> list(const std::string& directory) override {
    DIR* dir = ::opendir(directory.c_str());
    if (dir == nullptr) fail_errno("list", directory);
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string_view entry_name = entry->d_name;
      if (entry_name != "." && entry_name != "..") names.emplace_back(entry_name);
    }
    ::closedir(dir);
    std::sort(names.begin(), names.end());
    return names;
  }
  int64_t free_bytes(const std::string& path) override {
    struct statvfs info {};
    if (::statvfs(path.c_str(), &info) != 0) fail_errno("statvfs", path);
    return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  }
};

}  // namespace

std::string FileSystem::read_text(const std::string& path, int64_t max_bytes) {
  const auto file = open(path);
  HEARTH_CHECK(file->size() <= max_bytes, BadInput, "{} has {} bytes, more than the {} that are read", path,
               file->size(), max_bytes);
  std::string text(static_cast<size_t>(file->size()), '\0');
  file->read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void FileSystem::write_atomically(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".tmp";
  const auto file = create(temporary, CreateMode::Truncate);
  file->write(text);
  file->sync();  // the bytes must be durable before the name is
  file->close();
  rename(temporary, path);
  const auto parent = std::filesystem::path(path).parent_path().string();
  sync_directory(parent.empty() ? "." : parent);  // makes the rename durable
}

std::unique_ptr<FileSystem> make_posix_file_system() {
  return std::make_unique<PosixFileSystem>();
}

}  // namespace hearth
