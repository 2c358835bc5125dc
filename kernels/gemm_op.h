// The linear layer on tensors: y = x W^T + b and its gradients, fp32 or bf16 operands with fp32 accumulation
// and TF32 off. On CUDA through cuBLASLt (gemm.h), on the CPU through ATen. The weight gradient is added to
// the main gradient inside the GEMM (beta = 1), or is the first to write to it (beta = 0), so no second
// buffer or pass exists; as its own call it can be deferred. Thread-safe. Letters: N rows, K inputs, M
// outputs.
#pragma once

#include <memory>

#include "kernels/gemm_plan_file.h"
#include "kernels/gradient_write.h"
#include "kernels/op_support.h"

namespace hearth::kernels {

// Products on CUDA whose shape comes back are timed once with several algorithms (gemm.h), unless ATen's
// deterministic mode is on. `file` keeps the outcome over runs; call before the first product, once.
void keep_gemm_plans(std::unique_ptr<GemmPlanFile> file);

// x: [N, K]; w: [M, K]; bias: [M] or undefined; residual: [N, M] or undefined, added to the product where
// it is stored; one dtype, contiguous. Returns y [N, M]: `out` where it is given, which may
// overlap none of the others. In bf16 some of
// cuBLASLt's kernels round the product before they add to it, as two operations after each other would; the
// same holds for sums in bf16 below.
at::Tensor linear_forward_op(const at::Tensor& x_NK, const at::Tensor& w_MK, const at::Tensor& bias_M = {},
                             KernelPath path = KernelPath::Fused, const at::Tensor& residual_NM = {},
                             const at::Tensor& out_NM = {});

// Returns dx = dy W, [N, K]; written to `out` where it is given, or added to it.
at::Tensor linear_backward_input_op(const at::Tensor& dy_NM, const at::Tensor& w_MK,
                                    KernelPath path = KernelPath::Fused, const at::Tensor& out_NK = {},
                                    GradientWrite write = GradientWrite::Overwrite);

// dw_accum [M, K] += dy^T x, or = where it is to be overwritten; where db_accum is not null, *db_accum [M] +=
// column sums of dy. Both are contiguous, fp32 or the dtype of dy: summed in fp32 within a call.
void linear_backward_weight_op(const at::Tensor& dy_NM, const at::Tensor& x_NK, at::Tensor& dw_accum_MK,
                               at::Tensor* db_accum_M = nullptr, GradientWrite write = GradientWrite::Add,
                               KernelPath path = KernelPath::Fused);

// d += scale op(a) op(b), or = where d is to be overwritten; op transposes or not. 2-D, last dimension
// contiguous, rows any distance apart: parts of wider matrices, as low-rank adapters of fused projections
// need. a and b have one dtype, fp32 or bf16; d has theirs, or fp32. Sums in fp32.
enum class MatmulTranspose { No, Yes };
void matmul_accumulate_op(const at::Tensor& a, MatmulTranspose a_transpose, const at::Tensor& b,
                          MatmulTranspose b_transpose, at::Tensor d, GradientWrite write = GradientWrite::Add,
                          double scale = 1.0, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
