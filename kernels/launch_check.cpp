#include "kernels/launch_check.h"

#include <limits>

#include "base/error.h"

namespace hearth::kernels {

void fail_cuda(const char* call, cudaError_t error) {
  fail(ErrorKind::Cuda, "{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

void require_launch(bool condition, const char* op, const char* rule, int64_t value) {
  HEARTH_REQUIRE(condition, "{}: {}, got {}", op, rule, value);
}

void fail_dtype(const char* op, DType dtype) {
  fail(ErrorKind::Usage, "{}: no kernel for {}", op, config_name(dtype));
}

unsigned grid_size(const char* op, int64_t blocks) {
  HEARTH_REQUIRE(blocks >= 0 && blocks <= std::numeric_limits<int32_t>::max(),
                 "{}: a launch has at most 2^31 - 1 blocks, this shape needs {}; split it", op, blocks);
  return static_cast<unsigned>(blocks);
}

}  // namespace hearth::kernels
