// Scalar types of the reference kernels: double is the truth that tests compare with, float and Bf16 show
// what plain low-precision arithmetic costs. References are serial, unoptimised and stay for good; only tests
// call them.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "base/dtype.h"

namespace hearth::kernels::reference {

// Stores bf16, computes in float: every assignment rounds to nearest even, as a chain of plain bf16
// operations does.
struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  Bf16(double value)
      : bits(float_to_bf16(static_cast<float>(value))) {}  // NOLINT: implicit, so it acts as a number
  operator float() const { return bf16_to_float(bits); }
};

// What sums and statistics are kept in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace hearth::kernels::reference
