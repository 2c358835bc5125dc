#include "kernels/head_norm_rope_op.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "kernels/rms_norm_op.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/head_norm_rope.h"
#endif

namespace hearth::kernels {
namespace {

// The two operations after each other, in fp32 between them.
HeadNormRopeRstd forward_composed(const HeadNormRopeInput& in, double eps, at::Tensor& q_out,
                                  at::Tensor& k_out, KernelPath path) {
  const auto norm = [&](const at::Tensor& x, const at::Tensor& w) {
    return rms_norm_forward_op(x.to(at::kFloat), w.to(at::kFloat), eps, path);
  };
  const RmsNormForward q = norm(in.q_NHW, in.q_weight_W), k = norm(in.k_NKW, in.k_weight_W);
  const RopeResult rotated = rope_op(q.y, k.y, in.table, in.positions_N, RopeDirection::Forward, path);
  q_out.copy_(rotated.q);
  k_out.copy_(rotated.k);
  return {q.rstd, k.rstd};
}

void backward_composed(const at::Tensor& dq, const at::Tensor& dk, const HeadNormRopeInput& in,
                       const HeadNormRopeRstd& rstd, at::Tensor& dq_weight, at::Tensor& dk_weight,
                       at::Tensor& dq_out, at::Tensor& dk_out, KernelPath path) {
  const RopeResult normed =
      rope_op(dq.to(at::kFloat), dk.to(at::kFloat), in.table, in.positions_N, RopeDirection::Backward, path);
  const auto norm = [&](const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w,
                        const at::Tensor& rstd_of, at::Tensor& dw) {
    return rms_norm_backward_op(dy, x.to(at::kFloat), w.to(at::kFloat), rstd_of, dw, {}, path);
  };
  dq_out.copy_(norm(normed.q, in.q_NHW, in.q_weight_W, rstd.q, dq_weight));
  dk_out.copy_(norm(normed.k, in.k_NKW, in.k_weight_W, rstd.k, dk_weight));
}

#ifdef HEARTH_CUDA
// Undefined: none.
HeadsOf heads_of(const at::Tensor& x) {
  if (!x.defined()) return {nullptr, 0, 0};
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

HeadNormRopeTensor tensor_args(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
                               const at::Tensor& dy, const at::Tensor& out, const at::Tensor& dw_accum) {
  return {.heads = x.size(1),
          .x = heads_of(x),
          .weight = weight.const_data_ptr(),
          .rstd = rstd.data_ptr<float>(),
          .dy = heads_of(dy),
          .out = out.data_ptr(),
          .out_token_stride = out.stride(0),
          .out_head_stride = out.stride(1),
          .dw_accum = dw_accum.defined() ? dw_accum.data_ptr() : nullptr,
          .dw_dtype = dw_accum.defined() ? kernel_dtype(dw_accum) : DType::F32};
}

HeadNormRopeArgs common_args(const HeadNormRopeInput& in) {
  HeadNormRopeArgs args{};
  args.dtype = kernel_dtype(in.q_NHW);
  args.angles = {.cosine = in.table.cos_PD2.const_data_ptr<float>(),
                 .sine = in.table.sin_PD2.const_data_ptr<float>(),
                 .positions = in.positions_N.const_data_ptr(),
                 .positions_dtype = kernel_dtype(in.positions_N),
                 .num_positions = in.table.cos_PD2.size(0)};
  args.tokens = in.q_NHW.size(0);
  args.head_dim = in.q_NHW.size(2);
  return args;
}
#endif

void check_input(const char* op, const HeadNormRopeInput& in) {
  const at::Tensor &q = in.q_NHW, &k = in.k_NKW;
  check_activation(op, "q", q, 3);
  check_activation(op, "k", k, 3);
  HEARTH_REQUIRE(q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(2) % 2 == 0 && q.size(2) > 0 &&
                     q.scalar_type() == k.scalar_type() && q.device() == k.device(),
                 "{}: q [N, H, W] and k [N, K, W] must share N, an even W, dtype and device, got {} and {}",
                 op, describe(q), describe(k));
  for (const at::Tensor& w : {in.q_weight_W, in.k_weight_W}) {
    check_activation(op, "the weight", w, 1);
    HEARTH_REQUIRE(w.numel() == q.size(2) && w.scalar_type() == q.scalar_type() && w.device() == q.device(),
                   "{}: the weight must be [{}] with dtype and device of q, got {} and {}", op, q.size(2),
                   describe(w), describe(q));
  }
  HEARTH_REQUIRE(
      in.table.cos_PD2.defined() && in.table.cos_PD2.dim() == 2 && in.table.cos_PD2.size(1) == q.size(2) / 2,
      "{}: the table must be [P, {}], got {}", op, q.size(2) / 2, describe(in.table.cos_PD2));
  check_fp32_flat(op, "cos", in.table.cos_PD2, in.table.cos_PD2.numel(), q);
  check_fp32_flat(op, "sin", in.table.sin_PD2, in.table.cos_PD2.numel(), q);
  check_ids(op, "positions", in.positions_N, q.size(0), q);
}

void check_heads(const char* op, const char* what, const at::Tensor& x, const at::Tensor& like) {
  check_same(op, what, x, like);
  check_activation(op, what, x, 3);
}

}  // namespace

HeadNormRopeRstd head_norm_rope_forward_op(const HeadNormRopeInput& in, double eps, at::Tensor& q_out,
                                           at::Tensor& k_out, KernelPath path) {
  constexpr const char* kOp = "head_norm_rope_forward";
  check_input(kOp, in);
  HEARTH_REQUIRE(std::isfinite(eps) && eps >= 0, "{}: eps must be finite and >= 0, got {}", kOp, eps);
  check_heads(kOp, "q and its output", q_out, in.q_NHW);
  check_heads(kOp, "k and its output", k_out, in.k_NKW);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && in.q_NHW.is_cuda()) {
    const CudaScope scope(in.q_NHW);
    const auto fp32 = in.q_NHW.options().dtype(at::kFloat);
    const int64_t tokens = in.q_NHW.size(0);
    HeadNormRopeRstd rstd{at::empty({tokens * in.q_NHW.size(1)}, fp32),
                          at::empty({tokens * in.k_NKW.size(1)}, fp32)};
    HeadNormRopeArgs args = common_args(in);
    args.q = tensor_args(in.q_NHW, in.q_weight_W, rstd.q, {}, q_out, {});
    args.k = tensor_args(in.k_NKW, in.k_weight_W, rstd.k, {}, k_out, {});
    args.eps = static_cast<float>(eps);
    if (head_norm_rope_fits(args)) {
      head_norm_rope_forward(args, scope.stream());
      return rstd;
    }
  }
#endif
  return forward_composed(in, eps, q_out, k_out, path);
}

void head_norm_rope_backward_op(const at::Tensor& dq_NHW, const at::Tensor& dk_NKW,
                                const HeadNormRopeInput& in, const HeadNormRopeRstd& rstd,
                                at::Tensor& dq_weight_W, at::Tensor& dk_weight_W, at::Tensor& dq_out,
                                at::Tensor& dk_out, KernelPath path) {
  constexpr const char* kOp = "head_norm_rope_backward";
  check_input(kOp, in);
  const at::Tensor &q = in.q_NHW, &k = in.k_NKW;
  check_heads(kOp, "dq and q", dq_NHW, q);
  check_heads(kOp, "dk and k", dk_NKW, k);
  check_heads(kOp, "dq_out and q", dq_out, q);
  check_heads(kOp, "dk_out and k", dk_out, k);
  check_fp32_flat(kOp, "rstd of q", rstd.q, q.size(0) * q.size(1), q);
  check_fp32_flat(kOp, "rstd of k", rstd.k, k.size(0) * k.size(1), k);
  for (const at::Tensor& dw : {dq_weight_W, dk_weight_W})
    if (dw.defined()) check_state(kOp, "the weight gradient", dw, q.size(2), q);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && q.is_cuda()) {
    const CudaScope scope(q);
    at::Tensor workspace = at::empty({head_norm_rope_workspace_floats(q.size(2))}, rstd.q.options());
    HeadNormRopeArgs args = common_args(in);
    args.q = tensor_args(q, in.q_weight_W, rstd.q, dq_NHW, dq_out, dq_weight_W);
    args.k = tensor_args(k, in.k_weight_W, rstd.k, dk_NKW, dk_out, dk_weight_W);
    args.workspace = workspace.data_ptr<float>();
    if (head_norm_rope_fits(args)) return head_norm_rope_backward(args, scope.stream());
  }
#endif
  backward_composed(dq_NHW, dk_NKW, in, rstd, dq_weight_W, dk_weight_W, dq_out, dk_out, path);
}

}  // namespace hearth::kernels
