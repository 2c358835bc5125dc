// A file system that ends its process at a chosen call, for tests of programs that are killed.
#pragma once

#include <unistd.h>

#include <atomic>
#include <csignal>

#include "base/file_system.h"

namespace hearth::testing {

// Kills its own process, as a power cut or kill -9 would, at the n-th call that changes something.
class KillingFileSystem final : public FileSystem {
 public:
  KillingFileSystem(FileSystem& real, int64_t fatal) : real_(real), left_(fatal) {}
  std::unique_ptr<WritableFile> create(const std::string& path, CreateMode mode) override {
    return tick(), real_.create(path, mode);
  }
  std::unique_ptr<ReadableFile> open(const std::string& path) override { return real_.open(path); }
  void rename(const std::string& from, const std::string& to) override {
    tick();
    real_.rename(from, to);
    tick();
  }
  void remove(const std::string& path) override { tick(), real_.remove(path); }
  void remove_all(const std::string& path) override { tick(), real_.remove_all(path); }
  void create_directories(const std::string& path) override { tick(), real_.create_directories(path); }
  void sync_directory(const std::string& path) override { tick(), real_.sync_directory(path); }
  bool exists(const std::string& path) override { return real_.exists(path); }
  bool is_directory(const std::string& path) override { return real_.is_directory(path); }
  bool is_symlink(const std::string& path) override { return real_.is_symlink(path); }
  FileStamp stamp(const std::string& path) override { return real_.stamp(path); }
  void create_symlink(const std::string& target, const std::string& path) override {
    tick(), real_.create_symlink(target, path);
  }
  std::string read_symlink(const std::string& path) override { return real_.read_symlink(path); }
  std::vector<std::string> list(const std::string& directory) override { return real_.list(directory); }
  int64_t free_bytes(const std::string& path) override { return real_.free_bytes(path); }

 private:
  void tick() {
    if (left_.fetch_sub(1) == 1) kill(getpid(), SIGKILL);
  }
  FileSystem& real_;
  std::atomic<int64_t> left_;
};

}  // namespace hearth::testing
