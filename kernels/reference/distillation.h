// Reference distillation loss of rows of logits: student [rows, cols], teacher [rows, teacher_cols].
#pragma once

#include <cmath>
#include <vector>

#include "kernels/distillation_op.h"
#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
struct Distillation {
  std::vector<Sum<T>> cross_entropy, divergence;  // per row, unweighted; 0 in ignored rows
  std::vector<T> gradient;                        // of (1 - alpha) cross entropy + alpha T^2 divergence
};

// log softmax of the first `count` entries of row / temperature.
template <class T>
std::vector<Sum<T>> log_softmax(const T* row, size_t count, double temperature) {
  std::vector<Sum<T>> out(count);
  Sum<T> max = -INFINITY, sum = 0;
  for (size_t c = 0; c < count; ++c) max = std::max(max, Sum<T>(row[c]));
  for (size_t c = 0; c < count; ++c)
    sum += std::exp((Sum<T>(row[c]) - max) / static_cast<Sum<T>>(temperature));
  for (size_t c = 0; c < count; ++c)
    out[c] = (Sum<T>(row[c]) - max) / static_cast<Sum<T>>(temperature) - std::log(sum);
  return out;
}

// Columns [0, valid) of the student exist, the first `common` of them in the teacher too.
template <class T>
Distillation<T> distillation(const std::vector<T>& student, const std::vector<T>& teacher,
                             const std::vector<int64_t>& targets, size_t cols, size_t teacher_cols,
                             size_t valid, size_t common, const DistillationLoss& loss,
                             int64_t ignore_index) {
  using S = Sum<T>;
  const size_t rows = targets.size();
  Distillation<T> out{std::vector<S>(rows), std::vector<S>(rows), std::vector<T>(student.size())};
  for (size_t r = 0; r < rows; ++r) {
    if (targets[r] == ignore_index) continue;
    const auto log_p = log_softmax(student.data() + r * cols, valid, 1.0);
    const auto log_s = log_softmax(student.data() + r * cols, common, loss.temperature);
    const auto log_t = log_softmax(teacher.data() + r * teacher_cols, common, loss.temperature);
    const auto beta = static_cast<S>(loss.beta);
    std::vector<S> log_m(common);
    S kl_ts = 0, kl_st = 0, kl_tm = 0, kl_sm = 0;
    for (size_t c = 0; c < common; ++c) {
      const S s = std::exp(log_s[c]), t = std::exp(log_t[c]);
      log_m[c] = std::log(beta * t + (1 - beta) * s);
      kl_ts += t * (log_t[c] - log_s[c]), kl_st += s * (log_s[c] - log_t[c]);
      kl_tm += t * (log_t[c] - log_m[c]), kl_sm += s * (log_s[c] - log_m[c]);
    }
    out.cross_entropy[r] = -log_p[static_cast<size_t>(targets[r])];
    out.divergence[r] = loss.divergence == DivergenceKind::ForwardKl   ? kl_ts
                        : loss.divergence == DivergenceKind::ReverseKl ? kl_st
                                                                       : beta * kl_tm + (1 - beta) * kl_sm;
    for (size_t c = 0; c < valid; ++c) {
      S g = static_cast<S>(1 - loss.kd_alpha) *
            (std::exp(log_p[c]) - (static_cast<int64_t>(c) == targets[r] ? S(1) : S(0)));
      if (c < common) {
        const S s = std::exp(log_s[c]);
        const S d = loss.divergence == DivergenceKind::ForwardKl ? s - std::exp(log_t[c])
                    : loss.divergence == DivergenceKind::ReverseKl
                        ? s * (log_s[c] - log_t[c] - kl_st)
                        : (1 - beta) * s * (log_s[c] - log_m[c] - kl_sm);
        g += static_cast<S>(loss.kd_alpha * loss.temperature) * d;
      }
      out.gradient[r * cols + c] = T(g);
    }
  }
  return out;
}

}  // namespace hearth::kernels::reference
