// What every user of nccl.h here needs: error codes as Error{Peer}, element types, the id that ranks meet
// under, and how a communicator of a failing job ends. Built with HEARTH_CUDA only. Thread-safe but for
// share_nccl_id, which is the main thread's.
#pragma once

#include <nccl.h>

#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "parallel/control_plane.h"

namespace hearth {

// Throws Error{Peer} naming `call` unless `code` is ncclSuccess. `comm` may be null.
void check_nccl(ncclResult_t code, std::string_view call, ncclComm_t comm);

// Throws Error{Usage} for a type that NCCL cannot reduce.
ncclDataType_t nccl_type(DType dtype);

// Collective over the job: every rank gets the id that the first of its `ranks` made; groups of one call are
// disjoint. A group of one rank needs none and gets zeros.
ncclUniqueId share_nccl_id(ControlPlane& control, const std::vector<int>& ranks, std::string_view group);

// ncclCommAbort, which frees kernels that spin for a peer, on a thread of its own, because it can hang. The
// process's normal end waits for it, but not long: it uses what static destructors take down.
void abort_in_background(ncclComm_t comm);

}  // namespace hearth
