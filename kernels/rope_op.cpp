#include "kernels/rope_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/rope.h"
#endif

namespace hearth::kernels {
namespace {

// One head: `sine` is the table's row for Forward, and is subtracted through `sign` = -1 for Backward. Both
// halves are read before either is written, so `out` may be `x`.
HEARTH_CPU_CLONES void rotate_head(const float* x, const float* cosine, const float* sine, float sign,
                                   float* out, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], s = sign * sine[i];
    out[i] = a * cosine[i] - b * s;
    out[i + half] = b * cosine[i] + a * s;
  }
}

void rotate_cpu(const at::Tensor& x, const RopeTable& table, const std::vector<int64_t>& positions,
                RopeDirection direction, at::Tensor& out) {
  const int64_t heads = x.size(1), width = x.size(2), half = width / 2;
  const float sign = direction == RopeDirection::Forward ? 1.0f : -1.0f;
  const float *xp = x.const_data_ptr<float>(), *cosine = table.cos_PD2.const_data_ptr<float>();
  const float* sine = table.sin_PD2.const_data_ptr<float>();
  float* op = out.data_ptr<float>();
  at::parallel_for(0, x.size(0), cpu::grain_rows(heads * width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = positions[static_cast<size_t>(n)] * half;
      for (int64_t h = 0; h < heads; ++h)
        rotate_head(xp + n * x.stride(0) + h * x.stride(1), cosine + row, sine + row, sign,
                    op + n * out.stride(0) + h * out.stride(1), half);
    }
  });
}

std::vector<int64_t> checked_positions(const at::Tensor& positions_N, int64_t num_positions) {
  const at::Tensor wide = positions_N.to(at::kLong);
  const int64_t* data = wide.const_data_ptr<int64_t>();
  std::vector<int64_t> out(data, data + wide.numel());
  for (const int64_t position : out)
    HEARTH_REQUIRE(position >= 0 && position < num_positions,
                   "rope: position {} is outside the table's {} positions (max_position_embeddings)",
                   position, num_positions);
  return out;
}

void rotate_any_cpu(const at::Tensor& x, const RopeTable& table, const std::vector<int64_t>& positions,
                    RopeDirection direction, at::Tensor& out) {
  if (x.scalar_type() == at::kFloat) return rotate_cpu(x, table, positions, direction, out);
  at::Tensor wide = widen(x);
  rotate_cpu(wide, table, positions, direction, wide);
  out.copy_(wide);
}

void rotate_plain(const at::Tensor& x_NHD, const RopeTable& table, const at::Tensor& positions_N,
                  RopeDirection direction, at::Tensor& out) {
  const int64_t half = x_NHD.size(2) / 2;
  const at::Tensor index = positions_N.to(at::kLong);
  const at::Tensor cosine = table.cos_PD2.index_select(0, index).unsqueeze(1);
  at::Tensor sine = table.sin_PD2.index_select(0, index).unsqueeze(1);
  if (direction == RopeDirection::Backward) sine = sine.neg();
  const at::Tensor x = x_NHD.to(at::kFloat), a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
  out.copy_(at::cat({a.mul(cosine).sub(b.mul(sine)), b.mul(cosine).add(a.mul(sine))}, 2));
}

#ifdef HEARTH_CUDA
RopeTensor rope_tensor(const at::Tensor& in, at::Tensor& out) {
  return {in.const_data_ptr(), out.data_ptr(), in.size(1),   in.stride(0),
          in.stride(1),        out.stride(0),  out.stride(1)};
}

void rotate_cuda(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const RopeTable& table,
                 const at::Tensor& positions_N, RopeDirection direction, at::Tensor& q_out,
                 at::Tensor& k_out) {
  const CudaScope scope(q_NHD);
  rope({.dtype = kernel_dtype(q_NHD),
        .q = rope_tensor(q_NHD, q_out),
        .k = rope_tensor(k_NKD, k_out),
        .angles = {.cosine = table.cos_PD2.const_data_ptr<float>(),
                   .sine = table.sin_PD2.const_data_ptr<float>(),
                   .positions = positions_N.const_data_ptr(),
                   .positions_dtype = kernel_dtype(positions_N),
                   .num_positions = table.cos_PD2.size(0)},
        .tokens = q_NHD.size(0),
        .head_dim = q_NHD.size(2),
        .sign = direction == RopeDirection::Forward ? 1.0f : -1.0f},
       scope.stream());
}
#endif

void check_tensors(const at::Tensor& q, const at::Tensor& k, const RopeTable& table,
                   const at::Tensor& positions_N) {
  check_activation("rope", "q", q, 3);
  check_activation("rope", "k", k, 3);
  HEARTH_REQUIRE(q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(2) % 2 == 0 && q.size(2) > 0 &&
                     q.scalar_type() == k.scalar_type() && q.device() == k.device(),
                 "rope: q [N, H, D] and k [N, K, D] must share N, an even D, dtype and device, got {} and {}",
                 describe(q), describe(k));
  HEARTH_REQUIRE(
      table.cos_PD2.defined() && table.cos_PD2.dim() == 2 && table.cos_PD2.size(1) == q.size(2) / 2,
      "rope: the table must be [P, {}], got {}", q.size(2) / 2, describe(table.cos_PD2));
  check_fp32_flat("rope", "cos", table.cos_PD2, table.cos_PD2.numel(), q);
  check_fp32_flat("rope", "sin", table.sin_PD2, table.cos_PD2.numel(), q);
  check_ids("rope", "positions", positions_N, q.size(0), q);
}

}  // namespace

at::Tensor rope_inverse_frequencies(const RopeFrequencies& f) {
  HEARTH_REQUIRE(f.head_dim > 0 && f.head_dim % 2 == 0, "rope: head_dim must be even and > 0, got {}",
                 f.head_dim);
  HEARTH_REQUIRE(std::isfinite(f.theta) && f.theta > 0, "rope: rope_theta must be finite and > 0, got {}",
                 f.theta);
  const at::Tensor exponent = at::arange(0, f.head_dim, 2, at::TensorOptions().dtype(at::kFloat))
                                  .div(static_cast<double>(f.head_dim));
  const at::Tensor inv_freq = at::pow(at::Scalar(f.theta), exponent).reciprocal();
  if (f.scaling == RopeScalingKind::Default) return inv_freq;

  HEARTH_REQUIRE(
      f.factor > 0 && f.low_freq_factor > 0 && f.high_freq_factor > f.low_freq_factor &&
          f.original_max_position_embeddings > 0,
      "rope: llama3 scaling needs factor > 0, high_freq_factor > low_freq_factor > 0 and a positive "
      "original_max_position_embeddings, got {}, {}, {}, {}",
      f.factor, f.high_freq_factor, f.low_freq_factor, f.original_max_position_embeddings);
  const auto context = static_cast<double>(f.original_max_position_embeddings);
  const double low_wavelength = context / f.low_freq_factor, high_wavelength = context / f.high_freq_factor;
  const at::Tensor wavelength = inv_freq.reciprocal().mul(2 * std::numbers::pi);
  const at::Tensor slowed = at::where(wavelength.gt(low_wavelength), inv_freq.div(f.factor), inv_freq);
  // Between the two wavelengths: a linear blend of the slowed and the original frequency.
  const at::Tensor blend =
      wavelength.reciprocal().mul(context).sub(f.low_freq_factor).div(f.high_freq_factor - f.low_freq_factor);
  const at::Tensor blended = blend.neg().add(1).mul(slowed).div(f.factor).add(blend.mul(slowed));
  const at::Tensor outside = wavelength.lt(high_wavelength).logical_or(wavelength.gt(low_wavelength));
  return at::where(outside, slowed, blended);
}

RopeTable rope_table(const at::Tensor& inv_freq, int64_t num_positions, at::Device device) {
  HEARTH_REQUIRE(inv_freq.defined() && inv_freq.dim() == 1 && inv_freq.is_cpu(),
                 "rope_table: inv_freq must be an fp32 vector on the CPU, got {}", describe(inv_freq));
  HEARTH_REQUIRE(num_positions > 0, "rope_table: need at least one position, got {}", num_positions);
  const at::Tensor position = at::arange(num_positions, at::kLong).to(at::kFloat).unsqueeze(1);
  const at::Tensor angle = position.mul(inv_freq.unsqueeze(0));
  return {angle.cos().to(device).contiguous(), angle.sin().to(device).contiguous()};
}

void rope_out_op(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const RopeTable& table,
                 const at::Tensor& positions_N, RopeDirection direction, at::Tensor& q_out, at::Tensor& k_out,
                 KernelPath path) {
  check_tensors(q_NHD, k_NKD, table, positions_N);
  check_same("rope", "q and its output", q_NHD, q_out);
  check_same("rope", "k and its output", k_NKD, k_out);
  check_activation("rope", "q_out", q_out, 3);
  check_activation("rope", "k_out", k_out, 3);
  if (path == KernelPath::Plain) {
    rotate_plain(q_NHD, table, positions_N, direction, q_out);
    return rotate_plain(k_NKD, table, positions_N, direction, k_out);
  }
#ifdef HEARTH_CUDA
  if (q_NHD.is_cuda()) return rotate_cuda(q_NHD, k_NKD, table, positions_N, direction, q_out, k_out);
#endif
  const std::vector<int64_t> positions = checked_positions(positions_N, table.cos_PD2.size(0));
  rotate_any_cpu(q_NHD, table, positions, direction, q_out);
  rotate_any_cpu(k_NKD, table, positions, direction, k_out);
}

RopeResult rope_op(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const RopeTable& table,
                   const at::Tensor& positions_N, RopeDirection direction, KernelPath path) {
  check_tensors(q_NHD, k_NKD, table, positions_N);
  RopeResult out{at::empty(q_NHD.sizes(), q_NHD.options()), at::empty(k_NKD.sizes(), k_NKD.options())};
  rope_out_op(q_NHD, k_NKD, table, positions_N, direction, out.q, out.k, path);
  return out;
}

}  // namespace hearth::kernels
