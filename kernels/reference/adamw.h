// Reference AdamW step (Loshchilov & Hutter 2019, Algorithm 2, with PyTorch's placement of epsilon).
#pragma once

#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
struct AdamW {
  std::vector<T> param, exp_avg, exp_avg_sq;
};

struct AdamWScalars {
  double lr, beta1, beta2, eps, weight_decay, grad_scale;
  int64_t step;
};

// decays[i] multiplies the weight decay of element i: 0 or 1.
template <class T>
void adamw_step(AdamW<T>& state, const std::vector<T>& grad, const std::vector<double>& decays,
                const AdamWScalars& s) {
  const auto t = static_cast<double>(s.step);
  const double correction1 = 1 - std::pow(s.beta1, t), correction2 = 1 - std::pow(s.beta2, t);
  for (size_t i = 0; i < grad.size(); ++i) {
    const T g = grad[i] * static_cast<T>(s.grad_scale);
    state.param[i] *= static_cast<T>(1 - s.lr * s.weight_decay * decays[i]);
    state.exp_avg[i] = static_cast<T>(s.beta1) * state.exp_avg[i] + static_cast<T>(1 - s.beta1) * g;
    state.exp_avg_sq[i] = static_cast<T>(s.beta2) * state.exp_avg_sq[i] + static_cast<T>(1 - s.beta2) * g * g;
    const T denominator =
        std::sqrt(state.exp_avg_sq[i]) / static_cast<T>(std::sqrt(correction2)) + static_cast<T>(s.eps);
    state.param[i] -= static_cast<T>(s.lr / correction1) * state.exp_avg[i] / denominator;
  }
}

}  // namespace hearth::kernels::reference
