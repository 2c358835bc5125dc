// Where a rank runs: its cores and its device. For the start-up log and `doctor`; changes nothing by itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/control_plane.h"

namespace hearth {

// Cores this process may run on (sched_getaffinity), ascending.
std::vector<int> allowed_cores();
// "0-3,8": ranges as taskset and Slurm write them.
std::string format_cores(const std::vector<int>& cores);

struct RankPlace {
  int rank = 0, local_rank = 0;
  std::string host;
  std::string cores;  // format_cores
  int num_cores = 0;
  std::optional<int> device;  // CUDA ordinal
};
// Collective: the places of all ranks, in rank order.
std::vector<RankPlace> gather_places(ControlPlane& control, std::optional<int> device);
// "rank=3 host=gpu07 local_rank=3 device=3 cores=12-15"
std::string describe(const RankPlace& place);

// The device of a rank: its local rank, modulo the devices of the host; nullopt without devices.
std::optional<int> device_of(int local_rank, int device_count);

// Value that the environment variable NCCL_HOSTID must have in this rank before the first Comm is made, or
// nullopt when it must be left alone. With more local ranks than devices, ranks share a device; NCCL refuses
// that unless each rank looks like a host of its own, and then it talks over sockets. For debugging layouts
// only: slow, and CUDA MPS (nvidia-cuda-mps-control -d) makes it about ten times faster. Launch sets the
// variable and logs a warning.
std::optional<std::string> nccl_host_id(const ControlPlane& control, int device_count);

}  // namespace hearth
