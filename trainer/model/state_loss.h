// A term of the loss on the residual stream behind a layer: how far its rows are from given ones (hints:
// Romero et al. 2015; cosine: Sanh et al. 2019). It is added where the rows pass by, as auxiliary losses of
// experts are: rows go through unchanged, and backward adds the term's gradient to theirs. Borrowed by the
// graph. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace hearth {

enum class StateLossKind {
  Mse,     // mean over the features of (x - t)^2
  Cosine,  // 1 - cos(x, t)
};

// Rows [n, D] as this rank holds them between linears.
struct StateTarget {
  int64_t layer = 0;  // behind this many layers
  StateLossKind kind = StateLossKind::Mse;
  double weight = 1.0;
  at::Tensor target_nD;  // any floating dtype
  at::Tensor counts_n;   // fp32: 1 for rows that count, else 0
  at::Tensor sum;        // fp32 [1], to which weight x the sum over rows is added; undefined: another rank
                         // that holds the same rows does it
};

enum class StateSum { Add, Skip };  // Skip: the rows pass a second time, rebuilt in backward

// x_nD itself.
at::Tensor with_state_loss(const at::Tensor& x_nD, const StateTarget& target, StateSum sum);

}  // namespace hearth
