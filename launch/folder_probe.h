// Can a run live in this folder? Tries what checkpoints and locks need of a file system, and times its fsync.
#pragma once

#include <cstdint>
#include <string>

#include "base/file_system.h"

namespace hearth {

struct FolderProbe {
  std::string path;
  bool writable = false;          // a file could be made, written and read back
  bool atomic_rename = false;     // a rename replaces an existing file
  bool exclusive_create = false;  // a second O_EXCL create of one name is refused (run.lock rests on it)
  double fsync_ms = 0;            // 64 KiB written and made durable, median of 5
  int64_t free_bytes = 0;
  std::string trouble;  // what failed, for people; empty when all is well
  bool usable() const { return writable && atomic_rename && exclusive_create; }
};

// Works in a temporary folder below `path` (made if missing) and removes it. Never throws for a broken
// folder.
FolderProbe probe_folder(FileSystem& fs, const std::string& path);

}  // namespace hearth
