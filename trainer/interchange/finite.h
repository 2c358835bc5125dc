// Are all values finite? On stored bytes, so that a conversion that overflowed shows.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace hearth {

// Index of the first of `count` elements of `dtype` (F64, F32, F16, BF16) that is NaN or infinite; -1 where
// none is.
int64_t first_non_finite(DType dtype, const void* data, int64_t count);

}  // namespace hearth
