#include "kernels/rms_norm_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu_simd.h"
#include "kernels/row_layout.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/rms_norm.h"
#endif

namespace hearth::kernels {
namespace {

using cpu::kLanes;

struct Rows {
  int64_t rows = 0, cols = 0;
  RowLayout layout;
  int64_t offset(int64_t row) const { return layout.offset(row); }
};

// Of a [N, D] or [N, H, D] tensor; an undefined one has none.
Rows rows_of(const at::Tensor& x) {
  if (!x.defined()) return {};
  if (x.dim() == 2) return {x.size(0), x.size(1), {1, x.stride(0), 0}};
  if (x.stride(0) == x.size(1) * x.stride(1))  // evenly spaced: no heads to tell from tokens
    return {x.size(0) * x.size(1), x.size(2), {1, x.stride(1), 0}};
  return {x.size(0) * x.size(1), x.size(2), {x.size(1), x.stride(0), x.stride(1)}};
}

HEARTH_CPU_CLONES float sum_of_squares(const float* x, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += x[i] * x[i];
  float sum = 0.0f;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

HEARTH_CPU_CLONES void scale_row(const float* x, const float* w, float rstd, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * rstd * w[i];
}

// Sum of dy * w * x: what the mean in the norm's derivative needs, up to rstd / count.
HEARTH_CPU_CLONES float weighted_dot(const float* dy, const float* w, const float* x, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += dy[i + j] * w[i + j] * x[i + j];
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += dy[i] * w[i] * x[i];
  float sum = 0.0f;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

// dx = rstd * (dy * w - x * coefficient), with coefficient = rstd^2 * mean(dy * w * x).
HEARTH_CPU_CLONES void input_gradient_row(const float* dy, const float* w, const float* x, float rstd,
                                          float coefficient, float* dx, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dx[i] = rstd * (dy[i] * w[i] - x[i] * coefficient);
}

HEARTH_CPU_CLONES void add_row(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += x[i];
}

// acc += dy * x * rstd
HEARTH_CPU_CLONES void weight_gradient_row(const float* dy, const float* x, float rstd, float* acc,
                                           int64_t count) {
  for (int64_t i = 0; i < count; ++i) acc[i] += dy[i] * (x[i] * rstd);
}

RmsNormForward forward_cpu(const at::Tensor& x_in, const at::Tensor& w_in, double eps) {
  const at::Tensor x = widen(x_in), w_D = widen(w_in);
  const Rows map = rows_of(x);
  at::Tensor y = at::empty(x.sizes(), x.options()), rstd_N = at::empty({map.rows}, x.options());
  const float *xp = x.const_data_ptr<float>(), *wp = w_D.const_data_ptr<float>();
  float *yp = y.data_ptr<float>(), *rp = rstd_N.data_ptr<float>();
  at::parallel_for(0, map.rows, cpu::grain_rows(map.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = xp + map.offset(r);
      const float mean = sum_of_squares(row, map.cols) / static_cast<float>(map.cols);
      rp[r] = 1.0f / std::sqrt(mean + static_cast<float>(eps));
      scale_row(row, wp, rp[r], yp + r * map.cols, map.cols);
    }
  });
  return {y.to(x_in.scalar_type()), rstd_N};
}

// Threads split the columns, so each weight's sum runs over the rows in order whatever the number of threads.
void weight_gradient_cpu(const at::Tensor& dy, const at::Tensor& x, const float* rstd, float* dw) {
  constexpr int64_t kTile =
      64;  // columns: 256 bytes of each row, and the accumulators stay in the first cache
  const Rows dy_map = rows_of(dy), x_map = rows_of(x);
  const float *dyp = dy.const_data_ptr<float>(), *xp = x.const_data_ptr<float>();
  const int64_t tiles = (x_map.cols + kTile - 1) / kTile;
  const int64_t grain =
      std::max<int64_t>(1, cpu::kGrainElements / (kTile * std::max<int64_t>(1, x_map.rows)));
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, count = std::min(kTile, x_map.cols - first);
      float acc[kTile] = {};
      for (int64_t r = 0; r < x_map.rows; ++r)
        weight_gradient_row(dyp + dy_map.offset(r) + first, xp + x_map.offset(r) + first, rstd[r], acc,
                            count);
      add_row(acc, dw + first, count);
    }
  });
}

// y of the forward, from its rstd.
at::Tensor normed_cpu(const at::Tensor& x_in, const at::Tensor& w_in, const at::Tensor& rstd_N) {
  const at::Tensor x = widen(x_in), w_D = widen(w_in);
  const Rows map = rows_of(x);
  at::Tensor y = at::empty(x.sizes(), x.options());
  const float *xp = x.const_data_ptr<float>(), *wp = w_D.const_data_ptr<float>();
  const float* rp = rstd_N.const_data_ptr<float>();
  float* yp = y.data_ptr<float>();
  at::parallel_for(0, map.rows, cpu::grain_rows(map.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      scale_row(xp + map.offset(r), wp, rp[r], yp + r * map.cols, map.cols);
  });
  return y.to(x_in.scalar_type());
}

at::Tensor backward_cpu(const at::Tensor& dy_in, const at::Tensor& x_in, const at::Tensor& w_in,
                        const at::Tensor& rstd_N, at::Tensor& dw_accum_D, const at::Tensor& residual_in) {
  const at::Tensor dy = widen(dy_in), x = widen(x_in), w_D = widen(w_in);
  const at::Tensor residual = residual_in.defined() ? widen(residual_in) : at::Tensor();
  const Rows dy_map = rows_of(dy), x_map = rows_of(x);
  const Rows residual_map = rows_of(residual);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  const float *dyp = dy.const_data_ptr<float>(), *xp = x.const_data_ptr<float>(),
              *wp = w_D.const_data_ptr<float>();
  const float* rp = rstd_N.const_data_ptr<float>();
  const float* extra = residual.defined() ? residual.const_data_ptr<float>() : nullptr;
  float* dxp = dx.data_ptr<float>();
  at::parallel_for(0, x_map.rows, cpu::grain_rows(x_map.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *dy_row = dyp + dy_map.offset(r), *x_row = xp + x_map.offset(r);
      const float mean = weighted_dot(dy_row, wp, x_row, x_map.cols) / static_cast<float>(x_map.cols);
      float* dx_row = dxp + r * x_map.cols;
      input_gradient_row(dy_row, wp, x_row, rp[r], mean * rp[r] * rp[r], dx_row, x_map.cols);
      if (extra) add_row(extra + residual_map.offset(r), dx_row, x_map.cols);
    }
  });
  if (dw_accum_D.defined())
    on_wide_sum(dw_accum_D, [&](at::Tensor& sum) { weight_gradient_cpu(dy, x, rp, sum.data_ptr<float>()); });
  return dx.to(x_in.scalar_type());
}

RmsNormForward forward_plain(const at::Tensor& x_in, const at::Tensor& w_D, double eps) {
  const at::Tensor x = x_in.to(at::kFloat);
  const at::Tensor rstd = at::rsqrt(x.mul(x).mean({-1}, /*keepdim=*/true).add(eps));
  return {x.mul(rstd).mul(w_D.to(at::kFloat)).to(x_in.scalar_type()).contiguous(),
          rstd.reshape({-1}).contiguous()};
}

at::Tensor normed_plain(const at::Tensor& x_in, const at::Tensor& w_D, const at::Tensor& rstd_N) {
  std::vector<int64_t> shape(x_in.sizes().begin(), x_in.sizes().end());
  shape.back() = 1;
  return x_in.to(at::kFloat)
      .mul(rstd_N.view(shape))
      .mul(w_D.to(at::kFloat))
      .to(x_in.scalar_type())
      .contiguous();
}

at::Tensor backward_plain(const at::Tensor& dy_in, const at::Tensor& x_in, const at::Tensor& w_D,
                          const at::Tensor& rstd_N, at::Tensor& dw_accum_D, const at::Tensor& residual_grad) {
  const int64_t cols = x_in.size(-1);
  const at::Tensor dy = dy_in.to(at::kFloat).reshape({-1, cols});
  const at::Tensor rstd = rstd_N.view({-1, 1});
  const at::Tensor x_hat = x_in.to(at::kFloat).reshape({-1, cols}).mul(rstd);
  const at::Tensor weighted = dy.mul(w_D.to(at::kFloat));
  const at::Tensor mean = weighted.mul(x_hat).mean({-1}, /*keepdim=*/true);
  at::Tensor dx = weighted.sub(x_hat.mul(mean)).mul(rstd).view(x_in.sizes());
  if (residual_grad.defined()) dx = dx.add(residual_grad.to(at::kFloat));
  if (dw_accum_D.defined()) dw_accum_D.add_(dy.mul(x_hat).sum(c10::IntArrayRef{0}));
  return dx.to(x_in.scalar_type()).contiguous();
}

#ifdef HEARTH_CUDA
// `residual` may be undefined; `sum` then stays so.
RmsNormResidualForward forward_cuda(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& w_D,
                                    double eps) {
  const CudaScope scope(x);
  const Rows rows = rows_of(x);
  RmsNormResidualForward out{residual.defined() ? at::empty(x.sizes(), x.options()) : at::Tensor(),
                             at::empty(x.sizes(), x.options()),
                             at::empty({rows.rows}, x.options().dtype(at::kFloat))};
  rms_norm_forward({.dtype = kernel_dtype(x),
                    .x = x.const_data_ptr(),
                    .x_rows = rows.layout,
                    .w = w_D.const_data_ptr(),
                    .y = out.y.data_ptr(),
                    .rstd = out.rstd.data_ptr<float>(),
                    .rows = rows.rows,
                    .cols = rows.cols,
                    .eps = static_cast<float>(eps),
                    .residual = residual.defined() ? residual.const_data_ptr() : nullptr,
                    .residual_rows = rows_of(residual).layout,
                    .sum = residual.defined() ? out.sum.data_ptr() : nullptr},
                   scope.stream());
  return out;
}

// `y` may be undefined.
at::Tensor backward_cuda(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w_D,
                         const at::Tensor& rstd_N, at::Tensor& dw_accum_D, const at::Tensor& residual_grad,
                         const at::Tensor& y) {
  const CudaScope scope(x);
  const Rows rows = rows_of(x);
  at::Tensor dx = at::empty(x.sizes(), x.options());
  const int64_t floats = dw_accum_D.defined() ? rms_norm_backward_workspace_floats(rows.rows, rows.cols) : 0;
  at::Tensor workspace = at::empty({floats}, x.options().dtype(at::kFloat));
  rms_norm_backward({.dtype = kernel_dtype(x),
                     .dy = dy.const_data_ptr(),
                     .dy_rows = rows_of(dy).layout,
                     .x = x.const_data_ptr(),
                     .x_rows = rows.layout,
                     .w = w_D.const_data_ptr(),
                     .rstd = rstd_N.const_data_ptr<float>(),
                     .residual = residual_grad.defined() ? residual_grad.const_data_ptr() : nullptr,
                     .residual_rows = rows_of(residual_grad).layout,
                     .dx = dx.data_ptr(),
                     .y = y.defined() ? y.data_ptr() : nullptr,
                     .dw_accum = dw_accum_D.defined() ? dw_accum_D.data_ptr() : nullptr,
                     .dw_dtype = dw_accum_D.defined() ? kernel_dtype(dw_accum_D) : DType::F32,
                     .workspace = workspace.data_ptr<float>(),
                     .rows = rows.rows,
                     .cols = rows.cols},
                    scope.stream());
  return dx;
}
#endif

void check_inputs(const char* op, const at::Tensor& x, const at::Tensor& w_D) {
  HEARTH_REQUIRE(x.defined() && (x.dim() == 2 || x.dim() == 3), "{}: x must be [N, D] or [N, H, D], got {}",
                 op, describe(x));
  check_activation(op, "x", x, x.dim());
  check_activation(op, "w", w_D, 1);
  HEARTH_REQUIRE(x.size(-1) > 0 && w_D.numel() == x.size(-1) && w_D.scalar_type() == x.scalar_type() &&
                     w_D.device() == x.device(),
                 "{}: w must be [D] with x's dtype and device, got w {} and x {}", op, describe(w_D),
                 describe(x));
}

void check_eps(double eps) {
  HEARTH_REQUIRE(std::isfinite(eps) && eps >= 0, "rms_norm_forward: eps must be finite and >= 0, got {}",
                 eps);
}

void check_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w_D,
                    const at::Tensor& rstd_N, const at::Tensor& dw_accum_D, const at::Tensor& residual_grad) {
  constexpr const char* kOp = "rms_norm_backward";
  check_inputs(kOp, x, w_D);
  check_same(kOp, "dy and x", dy, x);
  check_activation(kOp, "dy", dy, x.dim());
  check_fp32_flat(kOp, "rstd", rstd_N, x.numel() / x.size(-1), x);
  if (dw_accum_D.defined()) check_state(kOp, "dw_accum", dw_accum_D, x.size(-1), x);
  if (residual_grad.defined()) {
    check_same(kOp, "residual_grad and x", residual_grad, x);
    check_activation(kOp, "residual_grad", residual_grad, x.dim());
  }
}

}  // namespace

RmsNormForward rms_norm_forward_op(const at::Tensor& x, const at::Tensor& w_D, double eps, KernelPath path) {
  check_inputs("rms_norm_forward", x, w_D);
  check_eps(eps);
  if (path == KernelPath::Plain) return forward_plain(x, w_D, eps);
#ifdef HEARTH_CUDA
  if (x.is_cuda()) {
    RmsNormResidualForward out = forward_cuda(x, {}, w_D, eps);
    return {std::move(out.y), std::move(out.rstd)};
  }
#endif
  return forward_cpu(x, w_D, eps);
}

RmsNormResidualForward rms_norm_residual_forward_op(const at::Tensor& x, const at::Tensor& residual,
                                                    const at::Tensor& w_D, double eps, KernelPath path) {
  constexpr const char* kOp = "rms_norm_residual_forward";
  check_inputs(kOp, x, w_D);
  check_eps(eps);
  check_same(kOp, "residual and x", residual, x);
  check_activation(kOp, "residual", residual, x.dim());
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && x.is_cuda()) return forward_cuda(x, residual, w_D, eps);
#endif
  at::Tensor sum = at::add(x, residual).contiguous();  // in fp32, rounded once
  RmsNormForward normed = rms_norm_forward_op(sum, w_D, eps, path);
  return {std::move(sum), std::move(normed.y), std::move(normed.rstd)};
}

at::Tensor rms_norm_backward_op(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w_D,
                                const at::Tensor& rstd_N, at::Tensor& dw_accum_D,
                                const at::Tensor& residual_grad, KernelPath path) {
  check_backward(dy, x, w_D, rstd_N, dw_accum_D, residual_grad);
  if (path == KernelPath::Plain) return backward_plain(dy, x, w_D, rstd_N, dw_accum_D, residual_grad);
#ifdef HEARTH_CUDA
  if (x.is_cuda()) return backward_cuda(dy, x, w_D, rstd_N, dw_accum_D, residual_grad, /*y=*/{});
#endif
  return backward_cpu(dy, x, w_D, rstd_N, dw_accum_D, residual_grad);
}

RmsNormBackward rms_norm_backward_recompute_op(const at::Tensor& dy, const at::Tensor& x,
                                               const at::Tensor& w_D, const at::Tensor& rstd_N,
                                               at::Tensor& dw_accum_D, const at::Tensor& residual_grad,
                                               KernelPath path) {
  check_backward(dy, x, w_D, rstd_N, dw_accum_D, residual_grad);
  if (path == KernelPath::Plain)
    return {backward_plain(dy, x, w_D, rstd_N, dw_accum_D, residual_grad), normed_plain(x, w_D, rstd_N)};
#ifdef HEARTH_CUDA
  if (x.is_cuda()) {
    at::Tensor y = at::empty(x.sizes(), x.options());
    at::Tensor dx = backward_cuda(dy, x, w_D, rstd_N, dw_accum_D, residual_grad, y);
    return {std::move(dx), std::move(y)};
  }
#endif
  return {backward_cpu(dy, x, w_D, rstd_N, dw_accum_D, residual_grad), normed_cpu(x, w_D, rstd_N)};
}

}  // namespace hearth::kernels
