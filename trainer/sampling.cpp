#include "trainer/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace hearth {

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform) {
  HEARTH_REQUIRE(!logits.empty(), "no logits to sample from");
  HEARTH_CHECK(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }), Numeric,
               "the model produced a logit that is not finite: the weights are damaged or overflowed");
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature <= 0.0) return static_cast<int32_t>(best - logits.begin());
  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    weights[i] = std::exp((static_cast<double>(logits[i]) - *best) / options.temperature);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return weights[static_cast<size_t>(a)] > weights[static_cast<size_t>(b)];
  });
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double kept = 0.0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < options.top_p * total))
    kept += weights[static_cast<size_t>(order[count++])];
  double left = uniform * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= weights[static_cast<size_t>(order[i])];
    if (left < 0.0) return order[i];
  }
  return order[count - 1];
}

}  // namespace hearth
