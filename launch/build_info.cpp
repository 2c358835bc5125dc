#include "launch/build_info.h"

#include <fmt/core.h>

#include "launch/git_commit.h"  // made by cmake/GitCommit.cmake

namespace hearth {

const BuildInfo& build_info() {
  static const BuildInfo info = {.version = HEARTH_VERSION,
                                 .git_commit = HEARTH_GIT_COMMIT,
                                 .compiler = HEARTH_COMPILER,
                                 .build_type = HEARTH_BUILD_TYPE,
                                 .cuda = HEARTH_CUDA_VERSION};
  return info;
}

std::string build_id() {
  const auto& b = build_info();
  return fmt::format("hearth {} commit={} compiler={} type={} cuda={}", b.version, b.git_commit, b.compiler,
                     b.build_type, b.cuda);
}

}  // namespace hearth
