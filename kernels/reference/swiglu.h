// Reference SwiGLU (Shazeer 2020): gu [rows, 2 * width], gate half first.
#pragma once

#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
std::vector<T> swiglu_forward(const std::vector<T>& gu, size_t width) {
  std::vector<T> h(gu.size() / 2);
  for (size_t i = 0; i < h.size(); ++i) {
    const size_t gate = (i / width) * 2 * width + i % width;
    const Sum<T> g = gu[gate];
    const T silu = g / (Sum<T>(1) + std::exp(-g));
    h[i] = Sum<T>(silu) * Sum<T>(gu[gate + width]);
  }
  return h;
}

template <class T>
std::vector<T> swiglu_backward(const std::vector<T>& dh, const std::vector<T>& gu, size_t width) {
  std::vector<T> dgu(gu.size());
  for (size_t i = 0; i < dh.size(); ++i) {
    const size_t gate = (i / width) * 2 * width + i % width;
    const Sum<T> g = gu[gate], u = gu[gate + width], sigmoid = Sum<T>(1) / (Sum<T>(1) + std::exp(-g));
    const T silu = g * sigmoid, d_silu = Sum<T>(dh[i]) * u;
    dgu[gate] = Sum<T>(d_silu) * sigmoid * (Sum<T>(1) + g * (Sum<T>(1) - sigmoid));
    dgu[gate + width] = Sum<T>(dh[i]) * Sum<T>(silu);
  }
  return dgu;
}

}  // namespace hearth::kernels::reference
