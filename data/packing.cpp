#include "data/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"

namespace hearth {

std::vector<std::vector<uint32_t>> pack_best_fit(std::span<const uint32_t> lengths, uint32_t capacity) {
  std::vector<uint32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<uint32_t>> bins;
  std::map<uint32_t, std::vector<uint32_t>> open;  // free tokens -> bins that have so many
  for (const uint32_t document : order) {
    const uint32_t length = lengths[document];
    HEARTH_ASSERT(length >= 1 && length <= capacity);
    const auto fit = open.lower_bound(length);
    uint32_t bin = checked_cast<uint32_t>(bins.size()), left = capacity;
    if (fit == open.end()) {
      bins.emplace_back();
    } else {
      left = fit->first;
      bin = fit->second.back();
      fit->second.pop_back();
      if (fit->second.empty()) open.erase(fit);
    }
    bins[bin].push_back(document);
    if (left > length) open[left - length].push_back(bin);
  }
  for (auto& bin : bins) std::sort(bin.begin(), bin.end());
  std::sort(bins.begin(), bins.end(), [](const auto& a, const auto& b) { return a.front() < b.front(); });
  return bins;
}

PairLengths cut_pair(PairLengths pair, int64_t capacity) {
  const int64_t first = std::min(pair.first, std::max(capacity / 2, capacity - pair.second));
  return {first, std::min(pair.second, capacity - first)};
}

}  // namespace hearth
