#include "kernels/swiglu_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/swiglu.h"
#endif

namespace hearth::kernels {
namespace {

HEARTH_CPU_CLONES void forward_row(const float* gate, const float* up, float* h, int64_t count) {
  for (int64_t i = 0; i < count; ++i) h[i] = gate[i] / (1.0f + cpu::exp_fast(-gate[i])) * up[i];
}

HEARTH_CPU_CLONES void backward_row(const float* dh, const float* gate, const float* up, float* d_gate,
                                    float* d_up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float sigmoid = 1.0f / (1.0f + cpu::exp_fast(-gate[i]));
    const float silu = gate[i] * sigmoid;
    d_up[i] = dh[i] * silu;
    d_gate[i] = dh[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
  }
}

at::Tensor forward_cpu(const at::Tensor& gu_in) {
  const at::Tensor gu_N2F = widen(gu_in);
  const int64_t rows = gu_N2F.size(0), width = gu_N2F.size(1) / 2;
  at::Tensor h_NF = at::empty({rows, width}, gu_N2F.options());
  const float* gu = gu_N2F.const_data_ptr<float>();
  float* h = h_NF.data_ptr<float>();
  at::parallel_for(0, rows, cpu::grain_rows(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      forward_row(gu + r * 2 * width, gu + r * 2 * width + width, h + r * width, width);
  });
  return h_NF.to(gu_in.scalar_type());
}

// Rows of fp32; outputs may be inputs. A row's results are made beside it and then copied: written over their
// inputs, the loops would not vectorise.
void backward_rows(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, at::Tensor& dgu_N2F, at::Tensor& h_NF) {
  const int64_t rows = gu_N2F.size(0), width = gu_N2F.size(1) / 2;
  const float *gu = gu_N2F.const_data_ptr<float>(), *dh = dh_NF.const_data_ptr<float>();
  float *dgu = dgu_N2F.data_ptr<float>(), *h = h_NF.defined() ? h_NF.data_ptr<float>() : nullptr;
  at::parallel_for(0, rows, cpu::grain_rows(width), [&](int64_t begin, int64_t end) {
    std::vector<float> made(static_cast<size_t>(3 * width));
    float* activation = made.data() + 2 * width;
    for (int64_t r = begin; r < end; ++r) {
      const float *gate = gu + r * 2 * width, *up = gate + width;
      backward_row(dh + r * width, gate, up, made.data(), made.data() + width, width);
      if (h) forward_row(gate, up, activation, width);
      std::copy_n(made.data(), 2 * width, dgu + r * 2 * width);
      if (h) std::copy_n(activation, width, h + r * width);
    }
  });
}

void backward_cpu(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, at::Tensor& dgu_N2F, at::Tensor& h_NF) {
  if (gu_N2F.scalar_type() == at::kFloat) return backward_rows(dh_NF, gu_N2F, dgu_N2F, h_NF);
  at::Tensor gu = widen(gu_N2F), h = widen(dh_NF);  // copies: the results may lie in them
  at::Tensor none;
  backward_rows(h, gu, gu, h_NF.defined() ? h : none);
  if (h_NF.defined()) h_NF.copy_(h);
  dgu_N2F.copy_(gu);
}

at::Tensor forward_plain(const at::Tensor& gu_N2F) {
  const at::Tensor gu = gu_N2F.to(at::kFloat);
  const int64_t width = gu.size(1) / 2;
  return at::silu(gu.narrow(1, 0, width)).mul(gu.narrow(1, width, width)).to(gu_N2F.scalar_type());
}

at::Tensor backward_plain(const at::Tensor& dh_NF, const at::Tensor& gu_N2F) {
  const at::Tensor gu = gu_N2F.to(at::kFloat), dh = dh_NF.to(at::kFloat);
  const int64_t width = gu.size(1) / 2;
  const at::Tensor gate = gu.narrow(1, 0, width), up = gu.narrow(1, width, width);
  const at::Tensor sigmoid = at::sigmoid(gate), silu = gate.mul(sigmoid);
  const at::Tensor slope = sigmoid.add(silu.mul(sigmoid.neg().add(1)));
  return at::cat({dh.mul(up).mul(slope), dh.mul(silu)}, 1).to(gu_N2F.scalar_type());
}

#ifdef HEARTH_CUDA
at::Tensor forward_cuda(const at::Tensor& gu_N2F) {
  const CudaScope scope(gu_N2F);
  const int64_t rows = gu_N2F.size(0), width = gu_N2F.size(1) / 2;
  at::Tensor h_NF = at::empty({rows, width}, gu_N2F.options());
  swiglu_forward({kernel_dtype(gu_N2F), gu_N2F.const_data_ptr(), h_NF.data_ptr(), rows, width},
                 scope.stream());
  return h_NF;
}

void backward_cuda(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, at::Tensor& dgu_N2F, at::Tensor& h_NF) {
  const CudaScope scope(gu_N2F);
  swiglu_backward({.dtype = kernel_dtype(gu_N2F),
                   .dh = dh_NF.const_data_ptr(),
                   .gu = gu_N2F.const_data_ptr(),
                   .dgu = dgu_N2F.data_ptr(),
                   .h = h_NF.defined() ? h_NF.data_ptr() : nullptr,
                   .rows = gu_N2F.size(0),
                   .width = gu_N2F.size(1) / 2},
                  scope.stream());
}
#endif

void check_input(const char* op, const at::Tensor& gu_N2F) {
  check_activation(op, "gu", gu_N2F, 2);
  HEARTH_REQUIRE(gu_N2F.is_contiguous() && gu_N2F.size(1) > 0 && gu_N2F.size(1) % 2 == 0,
                 "{}: gu must be contiguous [N, 2F], got {}", op, describe(gu_N2F));
}

}  // namespace

at::Tensor swiglu_forward_op(const at::Tensor& gu_N2F, KernelPath path) {
  check_input("swiglu_forward", gu_N2F);
  if (path == KernelPath::Plain) return forward_plain(gu_N2F);
#ifdef HEARTH_CUDA
  if (gu_N2F.is_cuda()) return forward_cuda(gu_N2F);
#endif
  return forward_cpu(gu_N2F);
}

void swiglu_backward_out_op(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, at::Tensor& dgu_N2F,
                            at::Tensor h_NF, KernelPath path) {
  constexpr const char* kOp = "swiglu_backward";
  check_input(kOp, gu_N2F);
  check_activation(kOp, "dh", dh_NF, 2);
  HEARTH_REQUIRE(dh_NF.is_contiguous() && dh_NF.size(0) == gu_N2F.size(0) &&
                     2 * dh_NF.size(1) == gu_N2F.size(1) && dh_NF.scalar_type() == gu_N2F.scalar_type() &&
                     dh_NF.device() == gu_N2F.device(),
                 "swiglu_backward: dh must be contiguous [N, F] for gu [N, 2F], got {} and {}",
                 describe(dh_NF), describe(gu_N2F));
  check_same(kOp, "dgu and gu", dgu_N2F, gu_N2F);
  if (h_NF.defined()) check_same(kOp, "h and dh", h_NF, dh_NF);
  HEARTH_REQUIRE(dgu_N2F.is_contiguous() && (!h_NF.defined() || h_NF.is_contiguous()),
                 "swiglu_backward: dgu and h must be contiguous, got {} and {}", describe(dgu_N2F),
                 describe(h_NF));
  if (path == KernelPath::Plain) {
    const at::Tensor dgu = backward_plain(dh_NF, gu_N2F);
    if (h_NF.defined()) h_NF.copy_(forward_plain(gu_N2F));
    dgu_N2F.copy_(dgu);
    return;
  }
#ifdef HEARTH_CUDA
  if (gu_N2F.is_cuda()) return backward_cuda(dh_NF, gu_N2F, dgu_N2F, h_NF);
#endif
  backward_cpu(dh_NF, gu_N2F, dgu_N2F, h_NF);
}

at::Tensor swiglu_backward_op(const at::Tensor& dh_NF, const at::Tensor& gu_N2F, KernelPath path) {
  check_input("swiglu_backward", gu_N2F);
  at::Tensor dgu_N2F = at::empty(gu_N2F.sizes(), gu_N2F.options());
  swiglu_backward_out_op(dh_NF, gu_N2F, dgu_N2F, {}, path);
  return dgu_N2F;
}

}  // namespace hearth::kernels
