// Collectives of the library below Comm (NCCL, MPI), called directly, with memory and a clock that suit them:
// what collective_bench.h holds Comm against. Not for training: no flight recorder, and over MPI no deadline.
// Main thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/dtype.h"
#include "parallel/bootstrap.h"

namespace hearth {

enum class CollectiveSide { Hearth, Library };

// On a communicator of its own over all ranks of the job, for elements of one type.
class LibraryCollectives {
 public:
  virtual ~LibraryCollectives() = default;

  // Where collectives of both sides find their data; lives as long as this object.
  virtual std::byte* allocate(int64_t size_bytes) = 0;
  // Return when the bytes are there.
  virtual void fill(std::byte* to, int value, int64_t size_bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t size_bytes) = 0;  // to or from host memory

  // As Comm's with ReduceOp::Sum: enqueued on a stream of their own (NCCL), or complete (MPI).
  virtual void all_reduce(void* data, int64_t count) = 0;
  virtual void reduce_scatter(const void* send, void* recv, int64_t count) = 0;
  virtual void all_gather(const void* send, void* recv, int64_t count) = 0;

  // For the Comm that is measured; null for host memory.
  virtual StreamHandle compute_stream() const = 0;
  // Until all that `calls` issues through one side is done on this rank.
  virtual void run(CollectiveSide side, const std::function<void()>& calls) = 0;
  // What `calls` take behind `lead`, which lets the ranks begin together. NCCL: on the device, which begins
  // when all is issued; to be run() once before, because a first call waits for the device, and a few hundred
  // calls at most, which is what a stream takes before the host waits.
  virtual double seconds(CollectiveSide side, const std::function<void()>& lead,
                         const std::function<void()>& calls) = 0;
};

// Collective over the job. The MPI side throws Error{Usage} unless `dtype` is F32: MPI has no bf16.
std::unique_ptr<LibraryCollectives> make_mpi_collectives(Job& job, DType dtype);
std::unique_ptr<LibraryCollectives> make_nccl_collectives(Job& job, DType dtype);  // on the current device

}  // namespace hearth
