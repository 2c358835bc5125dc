// Reference rotary embedding (Su et al. 2021), rotate-half convention, x [tokens, heads, 2 * half]
// contiguous.
#pragma once

#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

// sign = 1 rotates by position * inv_freq, -1 back.
template <class T>
std::vector<T> rope(const std::vector<T>& x, const std::vector<int64_t>& positions,
                    const std::vector<double>& inv_freq, double sign) {
  const size_t half = inv_freq.size(), per_token = x.size() / positions.size(),
               heads = per_token / (2 * half);
  std::vector<T> out(x.size());
  for (size_t n = 0; n < positions.size(); ++n)
    for (size_t h = 0; h < heads; ++h)
      for (size_t i = 0; i < half; ++i) {
        // In low precision cos and sin are rounded to T as well, as transformers does.
        const double angle = static_cast<double>(positions[n]) * inv_freq[i];
        const T c = std::cos(angle), s = sign * std::sin(angle);
        const size_t first = n * per_token + h * 2 * half + i, second = first + half;
        const T ac = Sum<T>(x[first]) * Sum<T>(c), bs = Sum<T>(x[second]) * Sum<T>(s);
        const T bc = Sum<T>(x[second]) * Sum<T>(c), as = Sum<T>(x[first]) * Sum<T>(s);
        out[first] = Sum<T>(ac) - Sum<T>(bs);
        out[second] = Sum<T>(bc) + Sum<T>(as);
      }
  return out;
}

}  // namespace hearth::kernels::reference
