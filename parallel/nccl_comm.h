// Comm over NCCL for device memory. Collectives run on a high-priority stream of their own; events order them
// after the earlier work of the compute stream and, at Work::wait, before its later work: the host never
// blocks and overlap is the default. The order of a sum is NCCL's (fixed for one layout, not rank order). A
// watchdog thread per communicator follows the flights: a collective not finished timeout_s after it was
// issued, an asynchronous NCCL error or a device error ends the process through `on_fatal` (the main thread
// may be stuck in a device call and cannot be asked). Without `on_fatal` the communicator is aborted and the
// next call throws. Built with HEARTH_CUDA only. nccl.h is included in parallel/ only. One main thread per
// Comm.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "parallel/comm.h"
#include "parallel/control_plane.h"
#include "parallel/flight_recorder.h"

namespace hearth {

struct NcclOptions {
  std::string group;
  std::vector<int> ranks;  // of the control plane, in group order
  int device = 0;
  double timeout_s = 300;
  int max_ctas = 0;  // as CommOptions
  // As JobOptions::on_fatal; the process ends when it returns.
  std::function<void(const Error&, const FlightRecorder&)> on_fatal;
};

// Collective over the job: the unique id travels through the control plane. Makes `device` current for this
// thread. A group of one rank gets a Comm that copies on the compute stream.
std::unique_ptr<Comm> make_nccl_comm(ControlPlane& control, FlightRecorder& recorder, NcclOptions options);

std::string nccl_version();  // "2.28.9"

}  // namespace hearth
