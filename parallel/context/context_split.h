// What a context-parallel group can share: rules for layouts, without torch. Pure, thread-safe.
#pragma once

#include <cstdint>

namespace hearth {

// Chunks that a sequence is cut into for `size` ranks (zigzag: two a rank); its length must be a multiple.
constexpr int64_t context_chunks(int64_t size) {
  return size == 1 ? 1 : 2 * size;
}

// Whether AllToAll can share out the heads: both counts are multiples of `size`.
constexpr bool all_to_all_fits(int64_t num_heads, int64_t num_kv_heads, int64_t size) {
  return num_heads % size == 0 && num_kv_heads % size == 0;
}

}  // namespace hearth
