// A folder that lives as long as the object. In memory where TMPDIR does not say otherwise: these tests fsync
// thousands of times, and what an fsync is worth is tested by replay, not by the disk of the day.
#pragma once

#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.h"

namespace hearth {

class TempFolder {
 public:
  TempFolder() {
    const bool in_memory = std::getenv("TMPDIR") == nullptr && std::filesystem::is_directory("/dev/shm");
    const auto base = in_memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path();
    std::string pattern = (base / "hearth-test-XXXXXX").string();
    HEARTH_CHECK(::mkdtemp(pattern.data()) != nullptr, Io, "cannot make a temporary folder {}", pattern);
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace hearth
