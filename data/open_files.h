// A bounded set of open read-only files, so that a dataset of thousands of shards stays under the limit of
// descriptors. Thread-safe.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "base/file_system.h"

namespace hearth {

class OpenFiles {
 public:
  // 256: a quarter of the usual soft limit of 1024, for training and validation data of one process.
  explicit OpenFiles(FileSystem& fs, size_t capacity = 256) : fs_(fs), capacity_(capacity) {}
  // shared_ptr: a file that is evicted while another thread reads it must stay open until that read ends.
  std::shared_ptr<const ReadableFile> get(const std::string& path);
  FileSystem& fs() const { return fs_; }

 private:
  using Entry = std::pair<std::string, std::shared_ptr<const ReadableFile>>;
  FileSystem& fs_;
  size_t capacity_;
  std::mutex mutex_;
  std::list<Entry> recent_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_path_;
};

}  // namespace hearth
