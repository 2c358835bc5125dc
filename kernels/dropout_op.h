// Dropout whose mask nobody keeps (Srivastava et al. 2014): y = x / (1 - p) where an element is kept, else 0.
// Which are kept is a pure function of (mask.seed, key of the row, column of the whole matrix): the same for
// any split of rows and columns, on the CPU and on CUDA, in forward and in backward. fp32 arithmetic, one
// rounding at the store. Thread-safe. Letters: N rows, C columns here.
#pragma once

#include "kernels/dropout_mask.h"
#include "kernels/op_support.h"

namespace hearth::kernels {

// For a matrix of `columns` columns, of which those from `first_column` on are here. 0 <= p < 1, rounded to
// the nearest 2^-16.
DropoutMask dropout_mask(uint64_t seed, double p, int64_t columns, int64_t first_column);

// x [N, C] contiguous; keys int64 [N]: what a row is called. Returns y [N, C].
at::Tensor dropout_op(const at::Tensor& x_NC, const at::Tensor& keys_N, const DropoutMask& mask);
// y += the same, in place: the gradient of an input that others use, too.
void dropout_accumulate_op(const at::Tensor& x_NC, const at::Tensor& keys_N, const DropoutMask& mask,
                           at::Tensor& y_NC);

}  // namespace hearth::kernels
