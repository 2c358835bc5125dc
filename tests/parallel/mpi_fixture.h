// The job of a test program: MPI is initialised once, when the first test case asks for it, and finalised at
// exit.
#pragma once

#include <cstdlib>
#include <numeric>

#include "parallel/bootstrap.h"

namespace hearth::test {

inline LaunchEnvironment environment() {
  return LaunchEnvironment::read([](const char* name) { return std::getenv(name); });
}

// timeout_s of the first call counts.
inline Job& job(double timeout_s = 60) {
  static Job instance = start_job(environment(), {.timeout_s = timeout_s, .on_fatal = {}});
  return instance;
}

inline std::vector<int> all_ranks() {
  std::vector<int> ranks(static_cast<size_t>(job().control->world_size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

inline std::unique_ptr<Comm> world_comm(double timeout_s = 60) {
  return make_comm(job(),
                   {.group = "world", .ranks = all_ranks(), .cuda_device = {}, .timeout_s = timeout_s});
}

}  // namespace hearth::test
