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

// The same row split over ranks. A share holds `valid` columns, the ids from first_id on.
struct ShareColumns {
  size_t cols, valid;
  int64_t first_id;
  bool holds(int64_t id) const { return id >= first_id && id < first_id + static_cast<int64_t>(valid); }
};

// [rows, 3]: largest logit, sum of exp(logit - largest), the target's logit or 0.
template <class T>
std::vector<Sum<T>> vocab_parallel_statistics(const std::vector<T>& logits,
                                              const std::vector<int64_t>& targets, const ShareColumns& share,
                                              int64_t ignore_index) {
  std::vector<Sum<T>> out;
  for (size_t r = 0; r < targets.size(); ++r) {
    const T* row = logits.data() + r * share.cols;
    Sum<T> max = -INFINITY, sum = 0;
    for (size_t c = 0; c < share.valid; ++c) max = std::max(max, Sum<T>(row[c]));
    for (size_t c = 0; c < share.valid && max > -INFINITY; ++c) sum += std::exp(Sum<T>(row[c]) - max);
    const bool here = share.holds(targets[r]) && targets[r] != ignore_index;
    out.insert(out.end(), {max, sum, here ? Sum<T>(row[targets[r] - share.first_id]) : Sum<T>(0)});
  }
  return out;
}

template <class S>
struct VocabParallelLoss {
  std::vector<S> loss, log_sum_exp;
};

// shares: the statistics of every share, S = Sum<T>. A target that is in no share must not be passed.
template <class S>
VocabParallelLoss<S> vocab_parallel_loss(const std::vector<std::vector<S>>& shares,
                                         const std::vector<int64_t>& targets, int64_t ignore_index) {
  VocabParallelLoss<S> out;
  for (size_t r = 0; r < targets.size(); ++r) {
    S max = -INFINITY, sum = 0, target = 0;
    for (const auto& stats : shares) max = std::max(max, stats[3 * r]);
    for (const auto& stats : shares) {
      sum += stats[3 * r + 1] * std::exp(stats[3 * r] - max);
      target += stats[3 * r + 2];
    }
    out.log_sum_exp.push_back(std::log(sum) + max);
    out.loss.push_back(targets[r] == ignore_index ? S(0) : std::log(sum) + (max - target));
  }
  return out;
}

// scale * (exp(logits - log_sum_exp) - onehot); 0 in ignored rows and padding.
template <class T>
std::vector<T> vocab_parallel_gradient(const std::vector<T>& logits, const std::vector<int64_t>& targets,
                                       const std::vector<Sum<T>>& log_sum_exp, const ShareColumns& share,
                                       double scale, int64_t ignore_index) {
  std::vector<T> out(logits.size());
  for (size_t r = 0; r < targets.size(); ++r) {
    for (size_t c = 0; c < share.valid && targets[r] != ignore_index; ++c) {
      const T probability = std::exp(Sum<T>(logits[r * share.cols + c]) - log_sum_exp[r]);
      const Sum<T> onehot = share.first_id + static_cast<int64_t>(c) == targets[r] ? 1 : 0;
      out[r * share.cols + c] = static_cast<Sum<T>>(scale) * (Sum<T>(probability) - onehot);
    }
  }
  return out;
}

}  // namespace hearth::kernels::reference
