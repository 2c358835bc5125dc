#include "kernels/gemm_op.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

namespace hearth::kernels {
namespace {

void check_matrix(const char* op, const char* what, const at::Tensor& matrix, const at::Tensor& like) {
  check_activation(op, what, matrix, 2);
  HEARTH_REQUIRE(matrix.is_contiguous() && matrix.scalar_type() == like.scalar_type() &&
                     matrix.device() == like.device(),
                 "{}: {} must be contiguous {} on {}, got {}", op, what, c10::toString(like.scalar_type()),
                 like.device().str(), describe(matrix));
}

at::Tensor forward_aten(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M) {
  return bias_M.defined() ? at::addmm(bias_M, x_NK, w_MK.t()) : at::mm(x_NK, w_MK.t());
}

// bf16 operands are widened: ATen has no mixed product on the CPU, and the sum must be in fp32.
void backward_weight_aten(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK) {
  dw_accum_MK.addmm_(dy_NM.to(at::kFloat).t(), x_NK.to(at::kFloat));
}

}  // namespace

at::Tensor linear_forward_op(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M,
                             KernelPath path) {
  constexpr const char* kOp = "linear_forward";
  check_activation(kOp, "x", x_NK, 2);
  check_matrix(kOp, "x", x_NK, x_NK);
  check_matrix(kOp, "w", w_MK, x_NK);
  HEARTH_REQUIRE(x_NK.size(1) == w_MK.size(1), "{}: x [N, K] and w [M, K] must share K, got {} and {}", kOp,
                 describe(x_NK), describe(w_MK));
  if (bias_M.defined()) {
    check_activation(kOp, "bias", bias_M, 1);
    HEARTH_REQUIRE(bias_M.size(0) == w_MK.size(0) && bias_M.scalar_type() == x_NK.scalar_type() &&
                       bias_M.device() == x_NK.device(),
                   "{}: bias must be [{}] of x's dtype and device, got {}", kOp, w_MK.size(0),
                   describe(bias_M));
  }
  static_cast<void>(path);
  return forward_aten(x_NK, w_MK, bias_M);
}

at::Tensor linear_backward_input_op(const at::Tensor& dy_NM, const at::Tensor& w_MK, KernelPath path) {
  constexpr const char* kOp = "linear_backward_input";
  check_activation(kOp, "dy", dy_NM, 2);
  check_matrix(kOp, "dy", dy_NM, dy_NM);
  check_matrix(kOp, "w", w_MK, dy_NM);
  HEARTH_REQUIRE(dy_NM.size(1) == w_MK.size(0), "{}: dy [N, M] and w [M, K] must share M, got {} and {}", kOp,
                 describe(dy_NM), describe(w_MK));
  static_cast<void>(path);
  return at::mm(dy_NM, w_MK);
}

void linear_backward_weight_op(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK,
                               at::Tensor* db_accum_M, KernelPath path) {
  constexpr const char* kOp = "linear_backward_weight";
  check_activation(kOp, "dy", dy_NM, 2);
  check_matrix(kOp, "dy", dy_NM, dy_NM);
  check_matrix(kOp, "x", x_NK, dy_NM);
  const int64_t outputs = dy_NM.size(1), inputs = x_NK.size(1);
  HEARTH_REQUIRE(dy_NM.size(0) == x_NK.size(0), "{}: dy [N, M] and x [N, K] must share N, got {} and {}", kOp,
                 describe(dy_NM), describe(x_NK));
  check_fp32_flat(kOp, "dw_accum", dw_accum_MK, outputs * inputs, dy_NM);
  HEARTH_REQUIRE(dw_accum_MK.dim() == 2 && dw_accum_MK.size(0) == outputs,
                 "{}: dw_accum must be [{}, {}], got {}", kOp, outputs, inputs, describe(dw_accum_MK));
  if (db_accum_M) check_fp32_flat(kOp, "db_accum", *db_accum_M, outputs, dy_NM);
  static_cast<void>(path);
  backward_weight_aten(dy_NM, x_NK, dw_accum_MK);
  if (db_accum_M) db_accum_M->add_(dy_NM.sum(c10::IntArrayRef{0}, /*keepdim=*/false, at::kFloat));
}

}  // namespace hearth::kernels
