// Memory for weights that a group of ranks gathers: Comm::allocate's, where the group has such memory, else
// the device allocator's. A block that was given back is kept, and lent to the next who asks for as many
// bytes: a bucket's memory comes and goes at every use, and to make a block is a collective. All ranks ask
// for the same sizes in the same order. Use of a block must be ordered by the group's compute stream. Not
// thread-safe. Blocks may outlive this object, but not the communicator.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>
#include <memory>

#include "parallel/comm.h"

namespace hearth {

class GatherMemory {
 public:
  // Borrows the communicator; null: the device allocator's memory only.
  GatherMemory(Comm* ranks, at::Device device);

  // Uninitialized. Throws c10::OutOfMemoryError or Error{Cuda} where there is none.
  at::DataPtr allocate(int64_t size_bytes);
  // Whether blocks are the group's own; known after the first of them.
  bool is_outside_allocator() const { return blocks_ != nullptr; }
  // Of the group's own blocks, lent or kept.
  int64_t size_bytes() const { return size_bytes_; }

 private:
  struct Blocks;
  class Loan;

  Comm* ranks_;  // null once it has shown that it has no memory of its own
  at::Device device_;
  std::shared_ptr<Blocks> blocks_;
  int64_t size_bytes_ = 0;
};

}  // namespace hearth
