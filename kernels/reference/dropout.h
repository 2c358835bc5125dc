// Reference dropout: x [rows, cols], the columns from first_column on of a matrix of `columns`; element by
// element from the definition in kernels/dropout_mask.h, which it does not use.
#pragma once

#include <cstdint>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

// 16 bits for (seed, key, column): number of the draw = key x draws of a row + column / 4, lane = column
// mod 4.
inline uint32_t dropout_lane(uint64_t seed, int64_t key, int64_t columns, int64_t column) {
  const auto draws = static_cast<uint64_t>((columns + 3) / 4);
  uint64_t x = seed + (static_cast<uint64_t>(key) * draws + static_cast<uint64_t>(column / 4)) *
                          11400714819323198485ull;  // 2^64 / golden ratio
  x ^= x >> 33;
  x *= 18397679294719823053ull;
  x ^= x >> 33;
  x *= 14181476777654086739ull;
  x ^= x >> 33;
  return static_cast<uint32_t>((x >> (column % 4 * 16)) % 65536);
}

template <class T>
std::vector<T> dropout(const std::vector<T>& x, const std::vector<int64_t>& keys, uint64_t seed,
                       uint32_t threshold, int64_t columns, int64_t first_column) {
  const size_t cols = x.size() / keys.size();
  const Sum<T> scale = Sum<T>(65536) / Sum<T>(65536 - threshold);
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t column = first_column + static_cast<int64_t>(i % cols);
    const bool dropped = dropout_lane(seed, keys[i / cols], columns, column) < threshold;
    y[i] = dropped ? Sum<T>(0) : Sum<T>(x[i]) * scale;
  }
  return y;
}

}  // namespace hearth::kernels::reference
