// Time of Comm's collectives beside the library's own calls (NCCL between devices, MPI between host memories)
// on the same ranks, in one process. Main thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "parallel/bootstrap.h"

namespace hearth {

enum class BenchCollective { AllReduce, ReduceScatter, AllGather, WindowedAllGather };
std::string_view name(BenchCollective op);  // "all_reduce", ..., "all_gather_windows"

struct CollectiveTiming {
  BenchCollective op;
  int64_t size_bytes = 0;  // of the buffer (all_reduce), of all ranks' chunks together (the others)
  int64_t calls = 0;       // in each of the measured runs
  // Of one call on the slowest rank, median of the runs; the same on all ranks.
  double seconds = 0, library_seconds = 0;
};

struct CollectiveBenchOptions {
  std::optional<int> cuda_device;  // as CommOptions
  DType dtype = DType::F32;        // F32 alone without a device, as MPI has no bf16
  int max_ctas = 0;                // as CommOptions: of Hearth's side
  // Every size from the one to the other, four times the last.
  int64_t min_bytes = 1 << 20, max_bytes = 16 << 20;
  std::function<void(const CollectiveTiming&)> on_timing;  // called after each, on every rank; may be empty
};

// Collective over the job. The windowed all-gather is Hearth's in memory of Comm::allocate, beside the
// library's in other memory; left out where the group has no such memory. Checks the values of every
// operation of both sides first. Throws Error{Usage} for a job of one rank, sizes that are none and a type
// that the library cannot add, Error{Peer} on every rank for a wrong value, and what make_comm and its
// collectives throw.
std::vector<CollectiveTiming> bench_collectives(Job& job, const CollectiveBenchOptions& options);

// min_bytes, 4 min_bytes, ... up to max_bytes, each rounded down to a multiple of `granule_bytes` but at
// least that; ascending. Throws Error{Usage} unless 1 <= min_bytes <= max_bytes.
std::vector<int64_t> bench_sizes(int64_t min_bytes, int64_t max_bytes, int64_t granule_bytes);

// Bytes per second and link that `ranks` ranks in a ring would need for this time: comparable with the rate
// of a link, whatever the number of ranks. Definition: nccl-tests, doc/PERFORMANCE.md.
double bus_bandwidth(BenchCollective op, int ranks, int64_t size_bytes, double seconds);

}  // namespace hearth
