// The one door to files for everything that must survive a crash or be tested with faults: checkpoints,
// shards, run folders. PosixFileSystem is the real one; FaultFileSystem (base/fault_file_system.h) decorates
// it in tests. Every failure throws Error{Io} or Error{NoSpace} with errno's name and the path. Thread-safe
// for distinct files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes without sync and never throws; call close() to learn of errors
  virtual void write(std::span<const std::byte> bytes) = 0;
  virtual void sync() = 0;   // fsync; a failed one is final for the file (reliability.md, step 7)
  virtual void close() = 0;  // reports delayed write errors
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
};

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual int64_t size() const = 0;  // bytes, at open
  // Reads exactly out.size() bytes from `offset`; a short file is Error{Io}.
  virtual void read_at(int64_t offset, std::span<std::byte> out) const = 0;
};

enum class CreateMode { Truncate, Exclusive, Append };

// What lies under a name, links not followed. Two equal stamps: nobody wrote to the file in between.
struct FileStamp {
  bool regular = false;  // a plain file
  int64_t size = 0;
  int64_t modified_ns = 0;  // of the clock of whoever wrote it: compare for equality only
  bool operator==(const FileStamp&) const = default;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<WritableFile> create(const std::string& path, CreateMode mode) = 0;
  virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove(const std::string& path) = 0;              // a file; missing is an error
  virtual void remove_all(const std::string& path) = 0;          // a tree; missing is fine
  virtual void create_directories(const std::string& path) = 0;  // existing is fine
  virtual void sync_directory(const std::string& path) = 0;      // makes names in it durable
  virtual bool exists(const std::string& path) = 0;
  virtual bool is_directory(const std::string& path) = 0;
  virtual bool is_symlink(const std::string& path) = 0;  // the name itself, not what it points to
  virtual FileStamp stamp(const std::string& path) = 0;  // missing is an error
  virtual void create_symlink(const std::string& target,
                              const std::string& path) = 0;  // existing is an error
  virtual std::string read_symlink(const std::string& path) = 0;
  virtual std::vector<std::string> list(const std::string& directory) = 0;  // names, sorted, without . and ..
  virtual int64_t free_bytes(const std::string& path) = 0;  // available to us on that file system

  // Helpers built on the calls above.
  std::string read_text(const std::string& path, int64_t max_bytes = int64_t{1} << 30);
  // Writes to `path`.tmp, fsyncs, renames over `path`, fsyncs the folder.
  void write_atomically(const std::string& path, std::string_view text);
};

std::unique_ptr<FileSystem> make_posix_file_system();

}  // namespace hearth
