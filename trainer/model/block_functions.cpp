#include "trainer/model/block_functions.h"

#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/embedding_op.h"
#include "kernels/gemm_op.h"
#include "kernels/rms_norm_op.h"
#include "kernels/rope_op.h"
#include "kernels/swiglu_op.h"

namespace hearth {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The weights outlive the graph (contract in the header), so the context carries their address.
template <class T>
void keep_pointer(AutogradContext* ctx, const char* key, const T* pointer) {
  ctx->saved_data[key] = reinterpret_cast<int64_t>(pointer);
}
template <class T>
const T* kept_pointer(AutogradContext* ctx, const char* key) {
  return reinterpret_cast<const T*>(ctx->saved_data[key].toInt());
}

void report_ready(const GradientReady* ready, const std::vector<int64_t>& parameters) {
  if (ready == nullptr) return;
  for (const int64_t index : parameters) (*ready)(index);
}

Tensor linear(const Tensor& x, const LinearWeights& w) { return kernels::linear_forward_op(x, w.weight, w.bias); }

// Every weight gradient of the model passes here: the one place where it can be deferred.
void accumulate_weight_gradient(const Tensor& dy, const Tensor& x, const LinearWeights& w, const GradientReady* ready) {
  Tensor main_grad = w.main_grad, bias_grad = w.bias_grad;
  kernels::linear_backward_weight_op(dy, x, main_grad, bias_grad.defined() ? &bias_grad : nullptr);
  report_ready(ready, w.parameters);
}

Tensor norm_backward(const Tensor& dy, const Tensor& x, const Tensor& rstd, const NormWeights& w,
                     const GradientReady* ready, const Tensor& residual_grad = {}) {
  Tensor main_grad = w.main_grad;
  Tensor dx = kernels::rms_norm_backward_op(dy, x, w.weight, rstd, main_grad, residual_grad);
  report_ready(ready, w.parameters);
  return dx;
}

// q and k sections of [N, H + 2K, W], as views.
struct Heads {
  Tensor q, k;
};
Heads query_and_key(const Tensor& qkv, const BlockWeights& w) {
  return {qkv.narrow(1, 0, w.num_heads), qkv.narrow(1, w.num_heads, w.num_kv_heads)};
}

// Normalises the rows of `section` [N, heads, W] in place; returns the rows before that, which backward needs.
struct HeadNorm {
  Tensor input, rstd;
};
HeadNorm head_norm(Tensor section, const NormWeights& w) {
  Tensor input = section.clone(at::MemoryFormat::Contiguous);
  auto normed = kernels::rms_norm_forward_op(input, w.weight, w.eps);
  section.copy_(normed.y);
  return {std::move(input), std::move(normed.rstd)};
}

struct AttentionInputFn : torch::autograd::Function<AttentionInputFn> {
  // Saves x, rstd and, with qk_norm, the q and k rows before their norm; the normalised x only without recompute.
  static Tensor forward(AutogradContext* ctx, const Tensor& x_ND, const BlockWeights* w, const RopeInput& rope) {
    auto normed = kernels::rms_norm_forward_op(x_ND, w->input_norm.weight, w->input_norm.eps);
    Tensor qkv = linear(normed.y, w->qkv).view({x_ND.size(0), w->num_heads + 2 * w->num_kv_heads, w->head_width});
    auto [q, k] = query_and_key(qkv, *w);
    HeadNorm q_norm, k_norm;
    if (w->q_norm.weight.defined()) {
      q_norm = head_norm(q, w->q_norm);
      k_norm = head_norm(k, w->k_norm);
    }
    kernels::rope_out_op(q, k, rope.table, rope.positions, kernels::RopeDirection::Forward, q, k);
    ctx->save_for_backward({x_ND, normed.rstd, w->recompute.norm ? Tensor() : normed.y, q_norm.input, k_norm.input,
                            q_norm.rstd, k_norm.rstd, rope.table.cos_PD2, rope.table.sin_PD2, rope.positions});
    keep_pointer(ctx, "w", w);
    return qkv;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const Tensor &x = saved[0], &rstd = saved[1];
    Tensor d_qkv = grads[0].contiguous();
    if (d_qkv.is_same(grads[0])) d_qkv = d_qkv.clone();  // the graph may still own it, and it is changed in place
    auto [dq, dk] = query_and_key(d_qkv, *w);
    kernels::rope_out_op(dq, dk, {saved[7], saved[8]}, saved[9], kernels::RopeDirection::Backward, dq, dk);
    if (w->q_norm.weight.defined()) {
      dq.copy_(norm_backward(dq, saved[3], saved[5], w->q_norm, w->gradient_ready));
      dk.copy_(norm_backward(dk, saved[4], saved[6], w->k_norm, w->gradient_ready));
    }
    const Tensor dy = d_qkv.view({x.size(0), -1});
    const Tensor normed =
        saved[2].defined() ? saved[2] : kernels::rms_norm_forward_op(x, w->input_norm.weight, w->input_norm.eps).y;
    accumulate_weight_gradient(dy, normed, w->qkv, w->gradient_ready);
    const Tensor d_normed = kernels::linear_backward_input_op(dy, w->qkv.weight);
    return {norm_backward(d_normed, x, rstd, w->input_norm, w->gradient_ready), Tensor(), Tensor()};
  }
};

struct AttentionOutputFn : torch::autograd::Function<AttentionOutputFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& context_NE, const Tensor& residual_ND,
                        const BlockWeights* w) {
    ctx->save_for_backward({context_NE});
    keep_pointer(ctx, "w", w);
    return linear(context_NE, w->attention_output).add_(residual_ND);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const Tensor dy = grads[0].contiguous();
    accumulate_weight_gradient(dy, saved[0], w->attention_output, w->gradient_ready);
    return {kernels::linear_backward_input_op(dy, w->attention_output.weight), dy, Tensor()};
  }
};

struct MlpFn : torch::autograd::Function<MlpFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_ND, const BlockWeights* w) {
    auto normed = kernels::rms_norm_forward_op(x_ND, w->post_attention_norm.weight, w->post_attention_norm.eps);
    const Tensor gate_up = linear(normed.y, w->gate_up);
    const Tensor activated = kernels::swiglu_forward_op(gate_up);
    ctx->save_for_backward({x_ND, normed.rstd, gate_up, w->recompute.norm ? Tensor() : normed.y,
                            w->recompute.swiglu ? Tensor() : activated});
    keep_pointer(ctx, "w", w);
    return linear(activated, w->down).add_(x_ND);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const auto& norm = w->post_attention_norm;
    const Tensor dy = grads[0].contiguous();
    const Tensor &x = saved[0], &rstd = saved[1], &gate_up = saved[2];
    {
      const Tensor activated = saved[4].defined() ? saved[4] : kernels::swiglu_forward_op(gate_up);
      accumulate_weight_gradient(dy, activated, w->down, w->gradient_ready);
    }
    const Tensor d_gate_up =
        kernels::swiglu_backward_op(kernels::linear_backward_input_op(dy, w->down.weight), gate_up);
    {
      const Tensor normed = saved[3].defined() ? saved[3] : kernels::rms_norm_forward_op(x, norm.weight, norm.eps).y;
      accumulate_weight_gradient(d_gate_up, normed, w->gate_up, w->gradient_ready);
    }
    const Tensor d_normed = kernels::linear_backward_input_op(d_gate_up, w->gate_up.weight);
    return {norm_backward(d_normed, x, rstd, norm, w->gradient_ready, /*residual_grad=*/dy), Tensor()};
  }
};

struct RmsNormFn : torch::autograd::Function<RmsNormFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_ND, const NormWeights* w, const GradientReady* ready) {
    auto normed = kernels::rms_norm_forward_op(x_ND, w->weight, w->eps);
    ctx->save_for_backward({x_ND, normed.rstd});
    keep_pointer(ctx, "w", w);
    keep_pointer(ctx, "ready", ready);
    return normed.y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {norm_backward(grads[0].contiguous(), saved[0], saved[1], *kept_pointer<NormWeights>(ctx, "w"),
                          kept_pointer<GradientReady>(ctx, "ready")),
            Tensor(), Tensor()};
  }
};

struct EmbeddingFn : torch::autograd::Function<EmbeddingFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& ids_N, const LinearWeights* w, const Tensor& /*anchor*/,
                        const GradientReady* ready) {
    ctx->save_for_backward({ids_N});
    keep_pointer(ctx, "w", w);
    keep_pointer(ctx, "ready", ready);
    return kernels::embedding_forward_op(w->weight, ids_N);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<LinearWeights>(ctx, "w");
    Tensor main_grad = w->main_grad;
    kernels::embedding_backward_op(grads[0].contiguous(), saved[0], main_grad);
    report_ready(kept_pointer<GradientReady>(ctx, "ready"), w->parameters);
    return {Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct LinearCrossEntropyFn : torch::autograd::Function<LinearCrossEntropyFn> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x_ND, const Tensor& targets_N,
                               const LinearWeights* head, int64_t valid_vocab, double scale,
                               const GradientReady* ready) {
    const int64_t rows = x_ND.size(0);
    const int64_t chunk = rows_per_logits_chunk(rows, head->weight.size(0), x_ND.element_size());
    Tensor dx = at::empty_like(x_ND);
    Tensor loss_sum = at::zeros({}, x_ND.options().dtype(at::kFloat));
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const Tensor x = x_ND.narrow(0, begin, count), targets = targets_N.narrow(0, begin, count);
      Tensor logits = linear(x, *head);
      loss_sum.add_(kernels::cross_entropy_forward_backward_op(logits, targets, scale, valid_vocab).sum());
      const Tensor& d_logits = logits;  // the kernel writes the gradient over the logits
      dx.narrow(0, begin, count).copy_(kernels::linear_backward_input_op(d_logits, head->weight));
      accumulate_weight_gradient(d_logits, x, *head, nullptr);  // reported once, in backward
    }
    ctx->save_for_backward({dx});
    keep_pointer(ctx, "head", head);
    keep_pointer(ctx, "ready", ready);
    ctx->mark_non_differentiable({loss_sum});
    return {loss_sum.mul(scale), loss_sum};
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    report_ready(kept_pointer<GradientReady>(ctx, "ready"), kept_pointer<LinearWeights>(ctx, "head")->parameters);
    return {ctx->get_saved_variables()[0], Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

int64_t rows_per_logits_chunk(int64_t rows, int64_t vocab, int64_t element_bytes) {
  constexpr int64_t kChunkBytes = int64_t{256} << 20;  // enough rows to keep the GEMM at full speed
  const int64_t fit = std::max<int64_t>(128, kChunkBytes / (vocab * element_bytes) / 128 * 128);
  return std::min(rows, fit);
}

Tensor attention_input(const Tensor& x_ND, const BlockWeights& weights, const RopeInput& rope) {
  return AttentionInputFn::apply(x_ND, &weights, rope);
}
Tensor attention_output(const Tensor& context_NE, const Tensor& residual_ND, const BlockWeights& weights) {
  return AttentionOutputFn::apply(context_NE, residual_ND, &weights);
}
Tensor mlp(const Tensor& x_ND, const BlockWeights& weights) { return MlpFn::apply(x_ND, &weights); }
Tensor rms_norm(const Tensor& x_ND, const NormWeights& weights, const GradientReady* gradient_ready) {
  return RmsNormFn::apply(x_ND, &weights, gradient_ready);
}
Tensor embedding(const Tensor& ids_N, const LinearWeights& table, const Tensor& anchor,
                 const GradientReady* gradient_ready) {
  return EmbeddingFn::apply(ids_N, &table, anchor, gradient_ready);
}
LossResult linear_cross_entropy(const Tensor& x_ND, const Tensor& targets_N, const LinearWeights& head,
                                int64_t valid_vocab, double scale, const GradientReady* gradient_ready) {
  auto out = LinearCrossEntropyFn::apply(x_ND, targets_N, &head, valid_vocab, scale, gradient_ready);
  return {out[0], out[1]};
}

}  // namespace hearth
