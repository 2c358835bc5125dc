// Reference causal grouped-query attention and its gradient (Vaswani et al. 2017; Ainslie et al. 2023), one
// score at a time: qkv [N, heads + 2 kv_heads, width]; documents, back to back, begin at the rows `starts`.
// In T as a chain of plain operations rounds: probabilities, their gradients, and each query head's share of
// dk and dv.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/reference/scalar.h"

namespace hearth::kernels::reference {

struct AttentionLayout {
  std::vector<size_t> starts;  // ascending, the first 0
  size_t rows, heads, kv_heads, width;
  size_t row_size() const { return (heads + 2 * kv_heads) * width; }
  // Where head `head` of the q, k or v of a row begins.
  size_t q(size_t row, size_t head) const { return row * row_size() + head * width; }
  size_t k(size_t row, size_t head) const { return q(row, heads + head / (heads / kv_heads)); }
  size_t v(size_t row, size_t head) const { return k(row, head) + kv_heads * width; }
  size_t out(size_t row, size_t head) const { return (row * heads + head) * width; }
  size_t first_row(size_t row) const { return *(std::upper_bound(starts.begin(), starts.end(), row) - 1); }
};

template <class T>
struct Attention {
  std::vector<T> out;               // [N, heads, width]
  std::vector<Sum<T>> log_sum_exp;  // [N, heads]
};

template <class T, class U>
Sum<T> attention_dot(const std::vector<T>& a, size_t at, const std::vector<U>& b, size_t bt, size_t width) {
  Sum<T> sum = 0;
  for (size_t i = 0; i < width; ++i) sum += Sum<T>(a[at + i]) * Sum<T>(b[bt + i]);
  return sum;
}

template <class T>
Attention<T> attention_forward(const std::vector<T>& qkv, const AttentionLayout& l) {
  Attention<T> result{std::vector<T>(l.rows * l.heads * l.width), std::vector<Sum<T>>(l.rows * l.heads)};
  const Sum<T> scale = 1 / std::sqrt(static_cast<Sum<T>>(l.width));
  for (size_t row = 0; row < l.rows; ++row)
    for (size_t head = 0; head < l.heads; ++head) {
      const size_t first = l.first_row(row);
      std::vector<Sum<T>> scores, out(l.width);
      for (size_t key = first; key <= row; ++key)
        scores.push_back(scale * attention_dot(qkv, l.q(row, head), qkv, l.k(key, head), l.width));
      const Sum<T> largest = *std::max_element(scores.begin(), scores.end());
      Sum<T> sum = 0;
      for (const Sum<T> score : scores) sum += std::exp(score - largest);
      for (size_t key = first; key <= row; ++key) {
        const T p = std::exp(scores[key - first] - largest) / sum;
        for (size_t i = 0; i < l.width; ++i) out[i] += Sum<T>(p) * Sum<T>(qkv[l.v(key, head) + i]);
      }
      std::copy(out.begin(), out.end(), result.out.begin() + static_cast<std::ptrdiff_t>(l.out(row, head)));
      result.log_sum_exp[row * l.heads + head] = largest + std::log(sum);
    }
  return result;
}

// d(qkv), [N, heads + 2 kv_heads, width].
template <class T>
std::vector<T> attention_backward(const std::vector<T>& d_out, const std::vector<T>& qkv,
                                  const Attention<T>& forward, const AttentionLayout& l) {
  std::vector<Sum<T>> sums(qkv.size());
  const Sum<T> scale = 1 / std::sqrt(static_cast<Sum<T>>(l.width));
  for (size_t head = 0; head < l.heads; ++head) {
    // This head's share of dk and dv: [rows, width] each.
    std::vector<Sum<T>> dk(l.rows * l.width), dv(l.rows * l.width);
    for (size_t row = 0; row < l.rows; ++row) {
      const Sum<T> mean = attention_dot(d_out, l.out(row, head), forward.out, l.out(row, head), l.width);
      for (size_t key = l.first_row(row); key <= row; ++key) {
        const Sum<T> score = scale * attention_dot(qkv, l.q(row, head), qkv, l.k(key, head), l.width);
        const T p = std::exp(score - forward.log_sum_exp[row * l.heads + head]);
        const Sum<T> dp = attention_dot(d_out, l.out(row, head), qkv, l.v(key, head), l.width);
        const T ds = Sum<T>(p) * (dp - mean);
        for (size_t i = 0; i < l.width; ++i) {
          sums[l.q(row, head) + i] += scale * Sum<T>(ds) * Sum<T>(qkv[l.k(key, head) + i]);
          dk[key * l.width + i] += scale * Sum<T>(ds) * Sum<T>(qkv[l.q(row, head) + i]);
          dv[key * l.width + i] += Sum<T>(p) * Sum<T>(d_out[l.out(row, head) + i]);
        }
      }
    }
    for (size_t row = 0; row < l.rows; ++row)
      for (size_t i = 0; i < l.width; ++i) {
        sums[l.k(row, head) + i] += Sum<T>(T(dk[row * l.width + i]));
        sums[l.v(row, head) + i] += Sum<T>(T(dv[row * l.width + i]));
      }
  }
  return std::vector<T>(sums.begin(), sums.end());
}

}  // namespace hearth::kernels::reference
