#include "trainer/model/linear_layer.h"

#include <ATen/ops/empty.h>

#include "kernels/dropout_op.h"
#include "kernels/gemm_op.h"

namespace hearth {
namespace {

using at::Tensor;
using kernels::GradientWrite;
using kernels::matmul_accumulate_op;
using kernels::MatmulTranspose;

bool drops(const LoraWeights& w, const DropoutKeys& keys) {
  return w.dropout.has_value() && keys.rows_N.defined();
}
// What the adapters see of the input.
Tensor lora_input(const Tensor& x, const LoraWeights& w, const DropoutKeys& keys) {
  return drops(w, keys) ? kernels::dropout_op(x, keys.rows_N, *w.dropout) : x;
}
// scale x A^T, [N, R], of lora_input().
Tensor lora_hidden(const Tensor& x, const LoraWeights& w) {
  Tensor h = at::empty({x.size(0), w.a.size(0)}, x.options());
  matmul_accumulate_op(x, MatmulTranspose::No, w.a, MatmulTranspose::Yes, h, GradientWrite::Overwrite,
                       w.scale);
  return h;
}
// A part's columns of [N, R], and of [N, out].
Tensor hidden_of(const Tensor& h, size_t part, const LoraWeights& w) {
  return h.narrow(1, static_cast<int64_t>(part) * w.rank, w.rank);
}
Tensor outputs_of(const Tensor& y, const LoraWeights::Part& part) {
  return y.narrow(1, part.first_row, part.b.size(0));
}
// y_p = h_p B_p^T, or added to it, in the columns of every part.
void lora_outputs(const Tensor& h, const LoraWeights& w, const Tensor& y, GradientWrite write) {
  for (size_t p = 0; p < w.parts.size(); ++p)
    matmul_accumulate_op(hidden_of(h, p, w), MatmulTranspose::No, w.parts[p].b, MatmulTranspose::Yes,
                         outputs_of(y, w.parts[p]), write);
}

bool every_output_has_an_adapter(const LinearWeights& w) {
  int64_t rows = 0;
  for (const auto& part : w.lora->parts) rows += part.b.size(0);
  return rows == w.weight.size(0);
}

void accumulate_lora_gradient(const Tensor& dy, const Tensor& x, const LoraWeights& w,
                              const AdapterPass& pass, const ModelContext& context) {
  Tensor a_grad = w.a_grad;
  const GradientWrite write = context.events->before_gradient(w.parameters);
  kernels::linear_backward_weight_op(pass.hidden_gradient, lora_input(x, w, pass.keys), a_grad,
                                     /*db_accum_M=*/nullptr, write);
  for (size_t p = 0; p < w.parts.size(); ++p)
    matmul_accumulate_op(outputs_of(dy, w.parts[p]), MatmulTranspose::Yes, hidden_of(pass.hidden, p, w),
                         MatmulTranspose::No, w.parts[p].b_grad, write);
  context.events->gradient_ready(w.parameters);
}

}  // namespace

// The thin products of the adapters come first and the wide one adds them in its own
// pass: a pass over the outputs less than the other way round.
LinearOutput linear(const Tensor& x, const LinearWeights& w, const DropoutKeys& keys,
                    const Tensor& residual) {
  constexpr auto kFused = kernels::KernelPath::Fused;
  if (!w.lora) return {kernels::linear_forward_op(x, w.weight, w.bias, kFused, residual), {}};
  const LoraWeights& lora = *w.lora;
  const Tensor h = lora_hidden(lora_input(x, lora, keys), lora);
  if (!every_output_has_an_adapter(w)) {
    const Tensor y = kernels::linear_forward_op(x, w.weight, w.bias, kFused, residual);
    lora_outputs(h, lora, y, GradientWrite::Add);
    return {y, h};
  }
  Tensor thin;
  if (residual.defined() && lora.parts.size() == 1) {
    thin = kernels::linear_forward_op(h, lora.parts[0].b, {}, kFused, residual);
  } else {
    thin = at::empty({x.size(0), w.weight.size(0)}, x.options());
    lora_outputs(h, lora, thin, GradientWrite::Overwrite);
    if (residual.defined()) thin.add_(residual);
  }
  if (w.bias.defined()) return {kernels::linear_forward_op(x, w.weight, w.bias, kFused, thin), h};
  matmul_accumulate_op(x, MatmulTranspose::No, w.weight, MatmulTranspose::Yes, thin);
  return {thin, h};
}

AdapterPass adapter_pass(const Tensor& dy, const LinearWeights& w, const Tensor& hidden,
                         const DropoutKeys& keys) {
  if (!w.lora) return {};
  AdapterPass pass{hidden, at::empty({dy.size(0), w.lora->a.size(0)}, dy.options()), keys};
  for (size_t p = 0; p < w.lora->parts.size(); ++p)
    matmul_accumulate_op(outputs_of(dy, w.lora->parts[p]), MatmulTranspose::No, w.lora->parts[p].b,
                         MatmulTranspose::No, hidden_of(pass.hidden_gradient, p, *w.lora),
                         GradientWrite::Overwrite, w.lora->scale);
  return pass;
}

Tensor linear_input_gradient(const Tensor& dy, const LinearWeights& w, const AdapterPass& pass) {
  if (!w.lora) return kernels::linear_backward_input_op(dy, w.weight);
  Tensor thin = at::empty({dy.size(0), w.weight.size(1)}, dy.options());
  matmul_accumulate_op(pass.hidden_gradient, MatmulTranspose::No, w.lora->a, MatmulTranspose::No, thin,
                       GradientWrite::Overwrite);
  if (!drops(*w.lora, pass.keys))
    return kernels::linear_backward_input_op(dy, w.weight, kernels::KernelPath::Fused, thin,
                                             GradientWrite::Add);
  Tensor dx = kernels::linear_backward_input_op(dy, w.weight);
  kernels::dropout_accumulate_op(thin, pass.keys.rows_N, *w.lora->dropout, dx);
  return dx;
}

void accumulate_weight_gradient(const Tensor& dy, const Tensor& x, const LinearWeights& w,
                                const AdapterPass& pass, const ModelContext& context, const Tensor& own_dy) {
  if (w.lora) accumulate_lora_gradient(dy, x, *w.lora, pass, context);
  if (!w.main_grad.defined()) return;
  Tensor main_grad = w.main_grad, bias_grad = w.bias_grad;
  const GradientWrite write = context.events->before_gradient(w.parameters);
  const bool all_rows = !own_dy.defined();
  kernels::linear_backward_weight_op(dy, x, main_grad, bias_grad.defined() && all_rows ? &bias_grad : nullptr,
                                     write);
  if (bias_grad.defined() && !all_rows) bias_grad.add_(own_dy.sum(0, /*keepdim=*/false, at::kFloat));
  context.events->gradient_ready(w.parameters);
}

}  // namespace hearth
