// Comm of a group of one rank: every collective is at most a copy, so a run on one rank takes the same code
// path.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/comm.h"

namespace hearth {

// Copies `size_bytes` from `from` to `to`, ordered on `stream` where the memory is a device's.
using CopyFunction = std::function<void(void* to, const void* from, int64_t size_bytes, StreamHandle stream)>;

// For buffers in host memory.
std::unique_ptr<Comm> make_single_comm(std::string group);
// For other memory: `copy` knows how.
std::unique_ptr<Comm> make_single_comm(std::string group, CopyFunction copy);

}  // namespace hearth
