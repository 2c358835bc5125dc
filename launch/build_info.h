// Which build this is: for --version, doctor, checkpoints, and the start-up vote that all ranks run the same
// program.
#pragma once

#include <string>

namespace hearth {

struct BuildInfo {
  std::string version;  // "0.1.0"
  std::string
      git_commit;        // 40 digits, "-dirty" behind it where tracked files differed; "unknown" outside git
  std::string compiler;  // "GNU 12.2.0"
  std::string build_type;  // "Release"
  std::string cuda;        // version of the toolkit, "none" for a CPU-only build
};

const BuildInfo& build_info();

// One line of all of it; equal for equal builds.
std::string build_id();

}  // namespace hearth
