// Reference NF4 (Dettmers et al. 2023): the nearest level of a block, found by its distance, and back.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/nf4_table.h"
#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

struct Nf4Blocks {
  std::vector<int> codes;      // one a value
  std::vector<double> absmax;  // one a block
  std::vector<double>
      margin;  // one a value: how much farther the second nearest level is, of the block's scale
};

inline Nf4Blocks nf4_quantize(const std::vector<double>& x) {
  Nf4Blocks out;
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % kNf4Block == 0) {
      out.absmax.push_back(0);
      for (size_t j = i; j < i + kNf4Block; ++j)
        out.absmax.back() = std::fmax(out.absmax.back(), std::abs(x[j]));
    }
    const double scaled = out.absmax.back() > 0 ? x[i] / out.absmax.back() : 0;
    std::vector<std::pair<double, int>> distance;
    for (int code = 0; code < kNf4Codes; ++code)
      distance.emplace_back(std::abs(scaled - static_cast<double>(kNf4Levels.value[code])), code);
    std::sort(distance.begin(), distance.end());
    out.codes.push_back(distance[0].second);
    out.margin.push_back(distance[1].first - distance[0].first);
  }
  return out;
}

// `scale` of each block.
template <class T>
std::vector<T> nf4_dequantize(const std::vector<int>& codes, const std::vector<double>& scale) {
  std::vector<T> out;
  for (size_t i = 0; i < codes.size(); ++i)
    out.push_back(static_cast<Sum<T>>(kNf4Levels.value[codes[i]]) *
                  static_cast<Sum<T>>(scale[i / kNf4Block]));
  return out;
}

}  // namespace hearth::kernels::reference
