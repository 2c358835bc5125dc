// At most one `data prepare` writes to a folder at a time. An advisory lock on a hidden file; the kernel
// drops it when the process dies, however it dies. Holds on one host and wherever flock works across hosts.
#pragma once

#include <string>

namespace hearth {

class FolderLock {
 public:
  // Throws Error{InUse} where another process holds it.
  explicit FolderLock(const std::string& directory);
  ~FolderLock();  // removes the file, then lets go
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace hearth
