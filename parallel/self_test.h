// One collective, checked: what `doctor` runs, and a cheap proof at start-up that ranks and links work.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "parallel/bootstrap.h"

namespace hearth {

struct CollectiveCheck {
  std::string backend;  // "nccl", "mpi", "single"
  int ranks = 0;
  int64_t size_bytes = 0;
  double seconds = 0;  // of one all_reduce after a first one that sets links up
};

// Collective over the job: all_reduce of `size_bytes` (rounded to fp32) in host memory, or on `cuda_device`.
// Throws Error{Peer} when a value is wrong, and what make_comm and all_reduce throw.
CollectiveCheck check_collective(Job& job, std::optional<int> cuda_device, int64_t size_bytes = 1 << 20);

}  // namespace hearth
