// The element type of a tensor as Comm and the memory formulas name it.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/dtype.h"
#include "base/error.h"

namespace hearth {

// Floating-point tensors only; Error{Usage} for others.
inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::F64;
    case at::kFloat:
      return DType::F32;
    case at::kHalf:
      return DType::F16;
    case at::kBFloat16:
      return DType::BF16;
    default:
      fail(ErrorKind::Usage, "a tensor of type {} where floating point is expected",
           c10::toString(tensor.scalar_type()));
  }
}

}  // namespace hearth
