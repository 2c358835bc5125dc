// Best-fit decreasing: documents are put whole into bins of one size, each into the fullest bin that still
// has room for it, longest first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"; at most
// 11/9 of the fewest bins possible, Johnson 1973). Pure, thread-safe; the result depends on the lengths
// alone. O(n log n) time, about 32 bytes per document.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hearth {

// Bins of document numbers; numbers ascend inside a bin. 1 <= lengths[i] <= capacity. Every document is in
// exactly one bin. Bins come in the order of their lowest number.
std::vector<std::vector<uint32_t>> pack_best_fit(std::span<const uint32_t> lengths, uint32_t capacity);

// How two documents that belong together share `capacity` tokens: each keeps what it needs up to half, and
// beyond it what the other leaves. Returns the lengths that stay; their sum is at most `capacity`.
struct PairLengths {
  int64_t first = 0, second = 0;
};
PairLengths cut_pair(PairLengths pair, int64_t capacity);

}  // namespace hearth
