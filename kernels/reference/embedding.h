// Reference embedding: table [vocab, width].
#pragma once

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
std::vector<T> embedding_forward(const std::vector<T>& table, const std::vector<int64_t>& ids, size_t width) {
  std::vector<T> out(ids.size() * width);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = table[static_cast<size_t>(ids[i / width]) * width + i % width];
  return out;
}

// Adds to dtable, in token order.
template <class T, class Accumulator>
void embedding_backward(const std::vector<T>& dy, const std::vector<int64_t>& ids, size_t width,
                        std::vector<Accumulator>& dtable) {
  for (size_t i = 0; i < dy.size(); ++i)
    dtable[static_cast<size_t>(ids[i / width]) * width + i % width] += dy[i];
}

}  // namespace hearth::kernels::reference
