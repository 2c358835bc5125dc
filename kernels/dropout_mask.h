// Which elements dropout drops: shared by the launcher, the CPU loop and whoever wants to know.
#pragma once

#include "kernels/counter_hash.h"

namespace hearth::kernels {

constexpr int kDropoutLanes = 4;  // columns that one draw of 64 bits decides on

struct DropoutMask {
  uint64_t seed;       // of the matrix
  uint32_t threshold;  // of 2^16: p to the nearest 2^-16
  int64_t row_draws;   // draws that a row of the whole matrix takes: its columns / kDropoutLanes, rounded up
  int64_t first_column;  // in the whole matrix, of column 0 here
};

// The draw that decides on kDropoutLanes columns beginning at draw x kDropoutLanes of the whole matrix:
// column c is dropped where bits [16 (c mod 4), 16 (c mod 4) + 16) are below the threshold.
HEARTH_HOST_DEVICE uint64_t dropout_draw(const DropoutMask& mask, int64_t key, int64_t draw) {
  return counter_bits(mask.seed, static_cast<uint64_t>(key * mask.row_draws + draw));
}
HEARTH_HOST_DEVICE bool is_dropped(const DropoutMask& mask, uint64_t bits, int64_t column) {
  return ((bits >> (16 * (column % kDropoutLanes))) & 0xffffu) < mask.threshold;
}
// Of what is kept: 1 / (1 - p).
HEARTH_HOST_DEVICE float dropout_scale(const DropoutMask& mask) {
  return 65536.0f / static_cast<float>(65536u - mask.threshold);
}

}  // namespace hearth::kernels
