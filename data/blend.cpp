#include "data/blend.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace hearth {
namespace {

constexpr int64_t kCycle = 10000;  // weights of up to four decimals are met exactly

// Largest-remainder apportionment of kCycle slots; every source gets one at least.
std::vector<int64_t> apportion(std::span<const double> weights) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> quotas(weights.size());
  std::vector<double> remainders(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double exact = weights[i] / total * static_cast<double>(kCycle);
    quotas[i] = std::max<int64_t>(1, static_cast<int64_t>(exact));
    remainders[i] = exact - static_cast<double>(quotas[i]);
  }
  int64_t missing = kCycle - std::accumulate(quotas.begin(), quotas.end(), int64_t{0});
  for (; missing > 0; --missing) {
    const auto i = std::max_element(remainders.begin(), remainders.end()) - remainders.begin();
    ++quotas[static_cast<size_t>(i)];
    remainders[static_cast<size_t>(i)] -= 1;
  }
  for (; missing < 0; ++missing)
    --*std::max_element(quotas.begin(), quotas.end());  // the tiny ones took too much
  return quotas;
}

}  // namespace

Blend::Blend(std::span<const double> weights) {
  HEARTH_CHECK(!weights.empty() && weights.size() <= 4096, Config, "a mixture has 1 to 4096 datasets, got {}",
               weights.size());
  for (const double weight : weights) {
    HEARTH_CHECK(std::isfinite(weight) && weight > 0, Config, "dataset weight must be finite and > 0, got {}",
                 weight);
  }
  quotas_ = weights.size() == 1 ? std::vector<int64_t>{1} : apportion(weights);
  const int64_t cycle = std::accumulate(quotas_.begin(), quotas_.end(), int64_t{0});
  std::vector<int64_t> taken(weights.size());
  for (int64_t k = 0; k < cycle; ++k) {
    size_t best = 0;
    int64_t best_deficit = INT64_MIN;
    for (size_t i = 0; i < taken.size(); ++i) {
      if (taken[i] == quotas_[i]) continue;
      const int64_t deficit = quotas_[i] * (k + 1) - taken[i] * cycle;
      if (deficit > best_deficit) best = i, best_deficit = deficit;
    }
    order_.push_back(static_cast<int32_t>(best));
    ordinals_.push_back(static_cast<int32_t>(taken[best]++));
  }
}

Blend::Slot Blend::slot(int64_t sample) const {
  HEARTH_ASSERT(sample >= 0);
  const auto cycle = static_cast<int64_t>(order_.size());
  const auto k = static_cast<size_t>(sample % cycle);
  const int32_t source = order_[k];
  return {source, sample / cycle * quotas_[static_cast<size_t>(source)] + ordinals_[k]};
}

int64_t Blend::count(int32_t source, int64_t samples) const {
  HEARTH_ASSERT(samples >= 0);
  const auto cycle = static_cast<int64_t>(order_.size());
  const auto rest = order_.begin() + samples % cycle;
  return samples / cycle * quotas_[static_cast<size_t>(source)] + std::count(order_.begin(), rest, source);
}

}  // namespace hearth
