// Reference RMSNorm (Zhang & Sennrich 2019, eq. 4), row-major [rows, cols].
#pragma once

#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
struct RmsNorm {
  std::vector<T> y;
  std::vector<Sum<T>> rstd;
};

template <class T>
RmsNorm<T> rms_norm_forward(const std::vector<T>& x, const std::vector<T>& w, double eps) {
  const size_t cols = w.size(), rows = x.size() / cols;
  RmsNorm<T> out{std::vector<T>(x.size()), std::vector<Sum<T>>(rows)};
  for (size_t r = 0; r < rows; ++r) {
    Sum<T> sum = 0;
    for (size_t c = 0; c < cols; ++c) sum += Sum<T>(x[r * cols + c]) * Sum<T>(x[r * cols + c]);
    out.rstd[r] = Sum<T>(1) / std::sqrt(sum / static_cast<Sum<T>>(cols) + static_cast<Sum<T>>(eps));
    for (size_t c = 0; c < cols; ++c) {
      const T x_hat = Sum<T>(x[r * cols + c]) * out.rstd[r];  // rounded here too, as transformers does
      out.y[r * cols + c] = Sum<T>(w[c]) * Sum<T>(x_hat);
    }
  }
  return out;
}

template <class T>
struct RmsNormGradients {
  std::vector<T> dx;
  std::vector<Sum<T>> dw;
};

// dx = rstd * (dy w - x_hat mean(dy w x_hat)), dw = sum over rows of dy x_hat.
template <class T>
RmsNormGradients<T> rms_norm_backward(const std::vector<T>& dy, const std::vector<T>& x,
                                      const std::vector<T>& w, double eps) {
  const size_t cols = w.size(), rows = x.size() / cols;
  const RmsNorm<T> forward = rms_norm_forward(x, w, eps);
  RmsNormGradients<T> out{std::vector<T>(x.size()), std::vector<Sum<T>>(cols)};
  for (size_t r = 0; r < rows; ++r) {
    const Sum<T> rstd = forward.rstd[r];
    Sum<T> mean = 0;
    for (size_t c = 0; c < cols; ++c) {
      const size_t i = r * cols + c;
      const Sum<T> x_hat = Sum<T>(x[i]) * rstd;
      mean += Sum<T>(dy[i]) * Sum<T>(w[c]) * x_hat / static_cast<Sum<T>>(cols);
      out.dw[c] += Sum<T>(dy[i]) * x_hat;
    }
    for (size_t c = 0; c < cols; ++c) {
      const size_t i = r * cols + c;
      const T weighted = Sum<T>(dy[i]) * Sum<T>(w[c]), projected = Sum<T>(x[i]) * rstd * mean;
      out.dx[i] = rstd * (Sum<T>(weighted) - Sum<T>(projected));
    }
  }
  return out;
}

}  // namespace hearth::kernels::reference
