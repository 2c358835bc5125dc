#include "kernels/dropout_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/dropout.h"
#endif

namespace hearth::kernels {
namespace {

enum class Into { Store, Add };

void dropped_row(const float* x, float* y, int64_t cols, int64_t key, const DropoutMask& mask, Into into) {
  const float scale = dropout_scale(mask);
  uint64_t bits = 0;
  for (int64_t c = 0; c < cols; ++c) {
    const int64_t column = mask.first_column + c;
    if (c == 0 || column % kDropoutLanes == 0) bits = dropout_draw(mask, key, column / kDropoutLanes);
    const float value = is_dropped(mask, bits, column) ? 0.0f : x[c] * scale;
    y[c] = into == Into::Add ? y[c] + value : value;
  }
}

void run_cpu(const at::Tensor& x_in, const at::Tensor& keys_N, const DropoutMask& mask, at::Tensor& y_in,
             Into into) {
  const at::Tensor x_NC = widen(x_in);
  at::Tensor y_NC = y_in.scalar_type() == at::kFloat ? y_in : y_in.to(at::kFloat);
  const int64_t cols = x_NC.size(1);
  const float* x = x_NC.const_data_ptr<float>();
  const auto* keys = keys_N.const_data_ptr<int64_t>();
  float* y = y_NC.data_ptr<float>();
  at::parallel_for(0, x_NC.size(0), cpu::grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) dropped_row(x + r * cols, y + r * cols, cols, keys[r], mask, into);
  });
  if (!y_NC.is_same(y_in)) y_in.copy_(y_NC);
}

void run(const char* op, const at::Tensor& x_NC, const at::Tensor& keys_N, const DropoutMask& mask,
         at::Tensor& y_NC, Into into) {
  check_activation(op, "x", x_NC, 2);
  check_same(op, "x and y", x_NC, y_NC);
  check_ids(op, "keys", keys_N, x_NC.size(0), x_NC);
  HEARTH_REQUIRE(x_NC.is_contiguous() && y_NC.is_contiguous() && keys_N.scalar_type() == at::kLong,
                 "{}: x and y must be contiguous and keys int64, got {}, {} and {}", op, describe(x_NC),
                 describe(y_NC), describe(keys_N));
  HEARTH_REQUIRE(mask.first_column >= 0 && mask.first_column + x_NC.size(1) <= mask.row_draws * kDropoutLanes,
                 "{}: columns {} to {} of a matrix of at most {}", op, mask.first_column,
                 mask.first_column + x_NC.size(1), mask.row_draws * kDropoutLanes);
#ifdef HEARTH_CUDA
  if (x_NC.is_cuda()) {
    const CudaScope scope(x_NC);
    dropout({.dtype = kernel_dtype(x_NC),
             .x = x_NC.const_data_ptr(),
             .y = y_NC.data_ptr(),
             .keys = keys_N.const_data_ptr<int64_t>(),
             .mask = mask,
             .rows = x_NC.size(0),
             .cols = x_NC.size(1),
             .accumulate = into == Into::Add},
            scope.stream());
    return;
  }
#endif
  run_cpu(x_NC, keys_N, mask, y_NC, into);
}

}  // namespace

DropoutMask dropout_mask(uint64_t seed, double p, int64_t columns, int64_t first_column) {
  HEARTH_REQUIRE(0 <= p && p < 1, "dropout: p must be in [0, 1), got {}", p);
  // What is kept is divided by the share that is kept: at 2^16 of 2^16 there would be none.
  const auto threshold = static_cast<uint32_t>(std::min(std::lround(p * 65536), 65535L));
  return {.seed = seed,
          .threshold = threshold,
          .row_draws = (columns + kDropoutLanes - 1) / kDropoutLanes,
          .first_column = first_column};
}

at::Tensor dropout_op(const at::Tensor& x_NC, const at::Tensor& keys_N, const DropoutMask& mask) {
  at::Tensor y_NC = at::empty_like(x_NC);
  run("dropout", x_NC, keys_N, mask, y_NC, Into::Store);
  return y_NC;
}

void dropout_accumulate_op(const at::Tensor& x_NC, const at::Tensor& keys_N, const DropoutMask& mask,
                           at::Tensor& y_NC) {
  run("dropout_accumulate", x_NC, keys_N, mask, y_NC, Into::Add);
}

}  // namespace hearth::kernels
