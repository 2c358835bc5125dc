// Reference RMSNorm of every head followed by the rotary embedding: x [tokens, heads, head_dim] contiguous.
#pragma once

#include "kernels/reference/rms_norm.h"
#include "kernels/reference/rope.h"

namespace hearth::kernels::reference {

template <class T>
RmsNorm<T> head_norm_rope_forward(const std::vector<T>& x, const std::vector<T>& w, double eps,
                                  const std::vector<int64_t>& positions,
                                  const std::vector<double>& inv_freq) {
  RmsNorm<T> normed = rms_norm_forward(x, w, eps);
  return {rope(normed.y, positions, inv_freq, 1), std::move(normed.rstd)};
}

template <class T>
RmsNormGradients<T> head_norm_rope_backward(const std::vector<T>& dy, const std::vector<T>& x,
                                            const std::vector<T>& w, double eps,
                                            const std::vector<int64_t>& positions,
                                            const std::vector<double>& inv_freq) {
  return rms_norm_backward(rope(dy, positions, inv_freq, -1), x, w, eps);
}

}  // namespace hearth::kernels::reference
