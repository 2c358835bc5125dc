#include "base/quantile.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {

double quantile(std::vector<double> values, double q) {
  HEARTH_REQUIRE(!values.empty(), "a quantile of nothing");
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace hearth
