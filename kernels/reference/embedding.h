// Reference embedding: table [rows, width] with the ids [first_id, first_id + rows); ids that it lacks give
// zeros in forward and add nothing in backward.
#pragma once

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

template <class T>
std::vector<T> embedding_forward(const std::vector<T>& table, const std::vector<int64_t>& ids, size_t width,
                                 int64_t first_id = 0) {
  const auto rows = static_cast<int64_t>(table.size() / width);
  std::vector<T> out(ids.size() * width);
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t row = ids[i / width] - first_id;
    if (row >= 0 && row < rows) out[i] = table[static_cast<size_t>(row) * width + i % width];
  }
  return out;
}

// Adds to dtable, in token order.
template <class T, class Accumulator>
void embedding_backward(const std::vector<T>& dy, const std::vector<int64_t>& ids, size_t width,
                        std::vector<Accumulator>& dtable, int64_t first_id = 0) {
  const auto rows = static_cast<int64_t>(dtable.size() / width);
  for (size_t i = 0; i < dy.size(); ++i) {
    const int64_t row = ids[i / width] - first_id;
    if (row >= 0 && row < rows) dtable[static_cast<size_t>(row) * width + i % width] += dy[i];
  }
}

}  // namespace hearth::kernels::reference
