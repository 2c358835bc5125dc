// Reference cross entropy: logits [rows, cols], of which the first `valid` columns exist.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
struct CrossEntropy {
  std::vector<Sum<T>> loss;  // 0 in ignored rows
  std::vector<T> gradient;   // scale * d(loss) / d(logits); 0 in ignored rows and padded columns
};

template <class T>
CrossEntropy<T> cross_entropy(const std::vector<T>& logits, const std::vector<int64_t>& targets, size_t cols,
                              size_t valid, double scale, int64_t ignore_index) {
  const size_t rows = targets.size();
  CrossEntropy<T> out{std::vector<Sum<T>>(rows), std::vector<T>(logits.size())};
  for (size_t r = 0; r < rows; ++r) {
    if (targets[r] == ignore_index) continue;
    const T* row = logits.data() + r * cols;
    Sum<T> max = row[0], sum = 0;
    for (size_t c = 0; c < valid; ++c) max = std::max(max, Sum<T>(row[c]));
    for (size_t c = 0; c < valid; ++c) sum += std::exp(Sum<T>(row[c]) - max);
    out.loss[r] = std::log(sum) + max - Sum<T>(row[targets[r]]);
    for (size_t c = 0; c < valid; ++c) {
      const T probability = std::exp(Sum<T>(row[c]) - max) / sum;
      const Sum<T> onehot = static_cast<int64_t>(c) == targets[r] ? 1 : 0;
      out.gradient[r * cols + c] = static_cast<Sum<T>>(scale) * (Sum<T>(probability) - onehot);
    }
  }
  return out;
}

}  // namespace hearth::kernels::reference
