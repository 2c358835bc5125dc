// Collectives over one group of ranks on raw buffers. No torch here. Backends: NCCL (nccl_comm.cpp), MPI
// (mpi_comm.cpp) and a single rank; made by parallel/bootstrap.h.
// Every call takes a call-site name ("grad.bucket3"), goes through the flight recorder and has a deadline
// (Error{Timeout} names the call). All ranks of the group issue the same calls in the same order.
// Ownership: buffers stay the caller's and must live until the returned Work is done.
// Determinism: MPI and single-rank reductions add in rank order, whatever the algorithm, so results are
// repeatable bit for bit. Not thread-safe: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/dtype.h"

namespace hearth {

// A CUDA stream, opaque here; null for host memory.
using StreamHandle = void*;

// Max keeps a NaN on the MPI and single-rank backends; do not rely on it over NCCL.
enum class ReduceOp { Sum, Max };

// A collective under way. wait() orders it before later work of the compute stream (NCCL: no host block) or
// completes it (MPI). Destroying an unfinished Work waits for it, unless an exception is on its way: then the
// job is ending, and the communicator is of no further use. A Work must not outlive its Comm.
class Work {
 public:
  virtual ~Work() = default;
  // Throws Error{Timeout} when the deadline passes, Error{Peer} when a rank or link is lost. Calling it again
  // is free.
  virtual void wait() = 0;
  // Makes progress without blocking (MPI moves data only inside its calls); true when the collective is done.
  virtual bool poll() = 0;
};
using WorkPtr = std::unique_ptr<Work>;

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;  // within the group
  virtual int size() const = 0;
  virtual std::string_view backend() const = 0;  // "nccl", "mpi", "single"
  virtual const std::string& group() const = 0;  // "dp", "tp", ... for messages

  // The stream whose earlier work the next collectives must see, and that wait() orders (NCCL). Set once per
  // device.
  virtual void set_compute_stream(StreamHandle stream) = 0;

  // In place.
  virtual WorkPtr all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view site) = 0;
  // send: size() x count elements; recv: count elements = the sum of everybody's chunk rank().
  // recv may be send + rank() x count.
  virtual WorkPtr reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                                 std::string_view site) = 0;
  // send: count elements; recv: size() x count. send may be recv + rank() x count.
  virtual WorkPtr all_gather(const void* send, void* recv, int64_t count, DType dtype,
                             std::string_view site) = 0;
  virtual WorkPtr broadcast(void* data, int64_t count, DType dtype, int root, std::string_view site) = 0;
  // send, recv: size() x count elements; chunk i goes to rank i.
  virtual WorkPtr all_to_all(const void* send, void* recv, int64_t count, DType dtype,
                             std::string_view site) = 0;
  virtual WorkPtr send(const void* data, int64_t count, DType dtype, int peer, std::string_view site) = 0;
  virtual WorkPtr recv(void* data, int64_t count, DType dtype, int peer, std::string_view site) = 0;
  virtual void barrier(std::string_view site) = 0;

  // Device memory between which all_gather moves data by copy engines alone, so that no compute unit leaves
  // the work beside it: NCCL (2.28 and up) over the NVLink of one host. Null elsewhere: any memory will do.
  // Uninitialized; its end waits for the compute stream. Collective: all ranks ask for the same sizes in the
  // same order. To be gone before the Comm.
  virtual std::shared_ptr<void> allocate(int64_t /*size_bytes*/) { return nullptr; }
};

}  // namespace hearth
