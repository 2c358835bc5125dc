// Where the rows of a tensor lie: shared by launchers and CPU loops.
#pragma once

#include <cstdint>

namespace hearth::kernels {

// Row r starts (r / inner) * outer_stride + (r % inner) * inner_stride elements after the first; its elements
// are contiguous. A plain matrix has inner = 1; heads inside a fused projection have inner = heads.
struct RowLayout {
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;
#ifdef __CUDACC__
  __host__ __device__
#endif
      int64_t
      offset(int64_t row) const {
    return inner == 1 ? row * outer_stride : (row / inner) * outer_stride + (row % inner) * inner_stride;
  }
  bool is_multiple_of(int64_t elements) const {
    return outer_stride % elements == 0 && inner_stride % elements == 0;
  }
};

}  // namespace hearth::kernels
