#include "kernels/gemm_op.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#ifdef HEARTH_CUDA
#include <map>
#include <mutex>
#include <utility>

#include "kernels/column_sum.h"
#include "kernels/cuda_scope.h"
#include "kernels/gemm.h"
#endif

namespace hearth::kernels {
namespace {

void check_matrix(const char* op, const char* what, const at::Tensor& matrix, const at::Tensor& like) {
  check_activation(op, what, matrix, 2);
  HEARTH_REQUIRE(matrix.is_contiguous() && matrix.scalar_type() == like.scalar_type() &&
                     matrix.device() == like.device(),
                 "{}: {} must be contiguous {} on {}, got {}", op, what, c10::toString(like.scalar_type()),
                 like.device().str(), describe(matrix));
}

at::Tensor forward_aten(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M,
                        const at::Tensor& residual_NM, at::Tensor y_NM) {
  if (residual_NM.defined()) {
    at::addmm_out(y_NM, residual_NM, x_NK, w_MK.t());
    return bias_M.defined() ? y_NM.add_(bias_M) : y_NM;
  }
  return bias_M.defined() ? at::addmm_out(y_NM, bias_M, x_NK, w_MK.t()) : at::mm_out(y_NM, x_NK, w_MK.t());
}

double beta_of(GradientWrite write) {
  return write == GradientWrite::Overwrite ? 0.0 : 1.0;
}

// bf16 operands are widened: ATen has no mixed product on the CPU, and the sum must be in fp32.
void backward_weight_aten(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK,
                          GradientWrite write) {
  on_wide_sum(dw_accum_MK, [&](at::Tensor& sum) {
    sum.addmm_(dy_NM.to(at::kFloat).t(), x_NK.to(at::kFloat), beta_of(write));
  });
}

#ifdef HEARTH_CUDA
// Runs on the context of the tensors' device and current stream. Contexts live as long as the process: they
// hold only what can be rebuilt (handles, scratch memory, memoised heuristics), so this static is not state
// that anyone can see. They are never destroyed, because the CUDA driver may be gone before static
// destructors run.
struct GemmContexts {
  std::mutex mutex;
  std::unique_ptr<GemmPlanFile> file;
  std::map<std::pair<int, cudaStream_t>, GemmContext> by_stream;
};
GemmContexts& gemm_contexts() {
  static auto& contexts = *new GemmContexts;
  return contexts;
}

void run_gemm(GemmArgs args, const at::Tensor& on) {
  GemmContexts& contexts = gemm_contexts();
  const CudaScope scope(on);
  args.tune = !at::globalContext().deterministicAlgorithms();
  const std::lock_guard lock(contexts.mutex);
  contexts.by_stream.try_emplace({on.device().index(), scope.stream()}, contexts.file.get())
      .first->second.run(args, scope.stream());
}

bool is_empty(const GemmArgs& args) {
  return args.m == 0 || args.n == 0 || args.k == 0;
}

at::Tensor forward_cuda(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M,
                        const at::Tensor& residual_NM, const at::Tensor& y_NM) {
  const GemmArgs args{.operand_dtype = kernel_dtype(x_NK),
                      .d_dtype = kernel_dtype(x_NK),
                      .a_transpose = Transpose::No,
                      .b_transpose = Transpose::Yes,
                      .m = x_NK.size(0),
                      .n = w_MK.size(0),
                      .k = x_NK.size(1),
                      .a = x_NK.const_data_ptr(),
                      .b = w_MK.const_data_ptr(),
                      .d = y_NM.data_ptr(),
                      .bias = bias_M.defined() ? bias_M.const_data_ptr() : nullptr,
                      .beta = residual_NM.defined() ? 1.0f : 0.0f,
                      .c = residual_NM.defined() ? residual_NM.const_data_ptr() : nullptr};
  if (is_empty(args)) return forward_aten(x_NK, w_MK, bias_M, residual_NM, y_NM);
  run_gemm(args, x_NK);
  return y_NM;
}

at::Tensor backward_input_cuda(const at::Tensor& dy_NM, const at::Tensor& w_MK, at::Tensor dx_NK,
                               GradientWrite write) {
  if (!dx_NK.defined()) dx_NK = at::empty({dy_NM.size(0), w_MK.size(1)}, dy_NM.options());
  const GemmArgs args{.operand_dtype = kernel_dtype(dy_NM),
                      .d_dtype = kernel_dtype(dy_NM),
                      .a_transpose = Transpose::No,
                      .b_transpose = Transpose::No,
                      .m = dy_NM.size(0),
                      .n = w_MK.size(1),
                      .k = w_MK.size(0),
                      .a = dy_NM.const_data_ptr(),
                      .b = w_MK.const_data_ptr(),
                      .d = dx_NK.data_ptr(),
                      .bias = nullptr,
                      .beta = static_cast<float>(beta_of(write))};
  if (is_empty(args)) return write == GradientWrite::Add ? dx_NK : dx_NK.zero_();
  run_gemm(args, dy_NM);
  return dx_NK;
}

void column_sum_cuda(const at::Tensor& dy_NM, at::Tensor& db_accum_M) {
  const CudaScope scope(dy_NM);
  const int64_t rows = dy_NM.size(0), cols = dy_NM.size(1);
  at::Tensor workspace =
      at::empty({column_sum_workspace_floats(rows, cols)}, dy_NM.options().dtype(at::kFloat));
  column_sum({.dtype = kernel_dtype(dy_NM),
              .x = dy_NM.const_data_ptr(),
              .accum = db_accum_M.data_ptr(),
              .accum_dtype = kernel_dtype(db_accum_M),
              .workspace = workspace.data_ptr<float>(),
              .rows = rows,
              .cols = cols},
             scope.stream());
}

void backward_weight_cuda(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK,
                          GradientWrite write) {
  const GemmArgs args{.operand_dtype = kernel_dtype(dy_NM),
                      .d_dtype = kernel_dtype(dw_accum_MK),
                      .a_transpose = Transpose::Yes,
                      .b_transpose = Transpose::No,
                      .m = dy_NM.size(1),
                      .n = x_NK.size(1),
                      .k = dy_NM.size(0),
                      .a = dy_NM.const_data_ptr(),
                      .b = x_NK.const_data_ptr(),
                      .d = dw_accum_MK.data_ptr(),
                      .bias = nullptr,
                      .beta = static_cast<float>(beta_of(write))};
  if (is_empty(args)) return backward_weight_aten(dy_NM, x_NK, dw_accum_MK, write);
  run_gemm(args, dy_NM);
}
#endif

}  // namespace

void keep_gemm_plans([[maybe_unused]] std::unique_ptr<GemmPlanFile> file) {
#ifdef HEARTH_CUDA
  GemmContexts& contexts = gemm_contexts();
  const std::lock_guard lock(contexts.mutex);
  HEARTH_REQUIRE(contexts.by_stream.empty() && contexts.file == nullptr,
                 "keep_gemm_plans comes before the first product, and once");
  contexts.file = std::move(file);
#endif
}

at::Tensor linear_forward_op(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M,
                             KernelPath path, const at::Tensor& residual_NM, const at::Tensor& out_NM) {
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
  if (residual_NM.defined()) {
    check_matrix(kOp, "residual", residual_NM, x_NK);
    HEARTH_REQUIRE(residual_NM.size(0) == x_NK.size(0) && residual_NM.size(1) == w_MK.size(0),
                   "{}: residual must be [{}, {}], got {}", kOp, x_NK.size(0), w_MK.size(0),
                   describe(residual_NM));
  }
  if (out_NM.defined()) {
    check_matrix(kOp, "out", out_NM, x_NK);
    HEARTH_REQUIRE(out_NM.size(0) == x_NK.size(0) && out_NM.size(1) == w_MK.size(0),
                   "{}: out must be [{}, {}], got {}", kOp, x_NK.size(0), w_MK.size(0), describe(out_NM));
  }
  const at::Tensor y_NM = out_NM.defined() ? out_NM : at::empty({x_NK.size(0), w_MK.size(0)}, x_NK.options());
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && x_NK.is_cuda()) return forward_cuda(x_NK, w_MK, bias_M, residual_NM, y_NM);
#endif
  static_cast<void>(path);  // on the CPU ATen is the only path
  return forward_aten(x_NK, w_MK, bias_M, residual_NM, y_NM);
}

at::Tensor linear_backward_input_op(const at::Tensor& dy_NM, const at::Tensor& w_MK, KernelPath path,
                                    const at::Tensor& out_NK, GradientWrite write) {
  constexpr const char* kOp = "linear_backward_input";
  HEARTH_REQUIRE(out_NK.defined() || write == GradientWrite::Overwrite, "{}: nothing to add to", kOp);
  check_activation(kOp, "dy", dy_NM, 2);
  check_matrix(kOp, "dy", dy_NM, dy_NM);
  check_matrix(kOp, "w", w_MK, dy_NM);
  HEARTH_REQUIRE(dy_NM.size(1) == w_MK.size(0), "{}: dy [N, M] and w [M, K] must share M, got {} and {}", kOp,
                 describe(dy_NM), describe(w_MK));
  if (out_NK.defined()) {
    check_matrix(kOp, "out", out_NK, dy_NM);
    HEARTH_REQUIRE(out_NK.size(0) == dy_NM.size(0) && out_NK.size(1) == w_MK.size(1),
                   "{}: out must be [{}, {}], got {}", kOp, dy_NM.size(0), w_MK.size(1), describe(out_NK));
  }
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && dy_NM.is_cuda()) return backward_input_cuda(dy_NM, w_MK, out_NK, write);
#endif
  static_cast<void>(path);
  if (!out_NK.defined()) return at::mm(dy_NM, w_MK);
  at::Tensor out = out_NK;
  return out.addmm_(dy_NM, w_MK, beta_of(write));
}

void linear_backward_weight_op(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK,
                               at::Tensor* db_accum_M, GradientWrite write, KernelPath path) {
  constexpr const char* kOp = "linear_backward_weight";
  check_activation(kOp, "dy", dy_NM, 2);
  check_matrix(kOp, "dy", dy_NM, dy_NM);
  check_matrix(kOp, "x", x_NK, dy_NM);
  const int64_t outputs = dy_NM.size(1), inputs = x_NK.size(1);
  HEARTH_REQUIRE(dy_NM.size(0) == x_NK.size(0), "{}: dy [N, M] and x [N, K] must share N, got {} and {}", kOp,
                 describe(dy_NM), describe(x_NK));
  check_state(kOp, "dw_accum", dw_accum_MK, outputs * inputs, dy_NM);
  HEARTH_REQUIRE(
      dw_accum_MK.dim() == 2 && dw_accum_MK.size(0) == outputs &&
          (dw_accum_MK.scalar_type() == at::kFloat || dw_accum_MK.scalar_type() == dy_NM.scalar_type()),
      "{}: dw_accum must be fp32 or {} [{}, {}], got {}", kOp, c10::toString(dy_NM.scalar_type()), outputs,
      inputs, describe(dw_accum_MK));
  if (db_accum_M) check_state(kOp, "db_accum", *db_accum_M, outputs, dy_NM);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && dy_NM.is_cuda()) {
    backward_weight_cuda(dy_NM, x_NK, dw_accum_MK, write);
    if (db_accum_M) column_sum_cuda(dy_NM, *db_accum_M);
    return;
  }
#endif
  static_cast<void>(path);
  backward_weight_aten(dy_NM, x_NK, dw_accum_MK, write);
  if (db_accum_M) db_accum_M->add_(dy_NM.sum(c10::IntArrayRef{0}, /*keepdim=*/false, at::kFloat));
}

void matmul_accumulate_op(const at::Tensor& a, MatmulTranspose a_transpose, const at::Tensor& b,
                          MatmulTranspose b_transpose, at::Tensor d, GradientWrite write, double scale,
                          KernelPath path) {
  constexpr const char* kOp = "matmul_accumulate";
  check_activation(kOp, "a", a, 2);
  check_activation(kOp, "b", b, 2);
  check_activation(kOp, "d", d, 2);
  const bool a_t = a_transpose == MatmulTranspose::Yes, b_t = b_transpose == MatmulTranspose::Yes;
  const int64_t m = a.size(a_t ? 1 : 0), k = a.size(a_t ? 0 : 1), n = b.size(b_t ? 0 : 1);
  HEARTH_REQUIRE(b.size(b_t ? 1 : 0) == k && d.size(0) == m && d.size(1) == n &&
                     a.scalar_type() == b.scalar_type() && a.device() == b.device() &&
                     d.device() == a.device() &&
                     (d.scalar_type() == a.scalar_type() || d.scalar_type() == at::kFloat),
                 "{}: {}{} x {}{} does not fit {}", kOp, describe(a), a_t ? "^T" : "", describe(b),
                 b_t ? "^T" : "", describe(d));
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && a.is_cuda()) {
    const GemmArgs args{.operand_dtype = kernel_dtype(a),
                        .d_dtype = kernel_dtype(d),
                        .a_transpose = a_t ? Transpose::Yes : Transpose::No,
                        .b_transpose = b_t ? Transpose::Yes : Transpose::No,
                        .m = m,
                        .n = n,
                        .k = k,
                        .a = a.const_data_ptr(),
                        .b = b.const_data_ptr(),
                        .d = d.data_ptr(),
                        .bias = nullptr,
                        .beta = static_cast<float>(beta_of(write)),
                        .a_stride = a.stride(0),
                        .b_stride = b.stride(0),
                        .d_stride = d.stride(0),
                        .alpha = static_cast<float>(scale)};
    if (!is_empty(args)) return run_gemm(args, a);
  }
#endif
  static_cast<void>(path);
  const auto operand = [&](const at::Tensor& x, bool transpose) {
    const at::Tensor wide = x.to(d.scalar_type());
    return transpose ? wide.t() : wide;
  };
  d.addmm_(operand(a, a_t), operand(b, b_t), beta_of(write), scale);
}

}  // namespace hearth::kernels
