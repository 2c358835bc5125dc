// Reference linear layer: x [n, k], w [m, k], y = x w^T + b [n, m].
#pragma once

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

struct LinearShape {
  size_t n, k, m;
};

template <class T>
std::vector<T> linear_forward(const std::vector<T>& x, const std::vector<T>& w, const std::vector<T>& bias,
                              LinearShape s) {
  std::vector<T> y(s.n * s.m);
  for (size_t n = 0; n < s.n; ++n)
    for (size_t m = 0; m < s.m; ++m) {
      Sum<T> sum = bias.empty() ? Sum<T>(0) : Sum<T>(bias[m]);
      for (size_t k = 0; k < s.k; ++k) sum += Sum<T>(x[n * s.k + k]) * Sum<T>(w[m * s.k + k]);
      y[n * s.m + m] = sum;
    }
  return y;
}

template <class T>
std::vector<T> linear_backward_input(const std::vector<T>& dy, const std::vector<T>& w, LinearShape s) {
  std::vector<T> dx(s.n * s.k);
  for (size_t n = 0; n < s.n; ++n)
    for (size_t k = 0; k < s.k; ++k) {
      Sum<T> sum = 0;
      for (size_t m = 0; m < s.m; ++m) sum += Sum<T>(dy[n * s.m + m]) * Sum<T>(w[m * s.k + k]);
      dx[n * s.k + k] = sum;
    }
  return dx;
}

// Adds dy^T x to dw and, where db is not empty, the column sums of dy to db.
template <class T>
void linear_backward_weight(const std::vector<T>& dy, const std::vector<T>& x, LinearShape s,
                            std::vector<Sum<T>>& dw, std::vector<Sum<T>>& db) {
  for (size_t n = 0; n < s.n; ++n)
    for (size_t m = 0; m < s.m; ++m) {
      for (size_t k = 0; k < s.k; ++k) dw[m * s.k + k] += Sum<T>(dy[n * s.m + m]) * Sum<T>(x[n * s.k + k]);
      if (!db.empty()) db[m] += Sum<T>(dy[n * s.m + m]);
    }
}

}  // namespace hearth::kernels::reference
