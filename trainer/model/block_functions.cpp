#include "trainer/model/block_functions.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/embedding_op.h"
#include "kernels/gemm_op.h"
#include "kernels/head_norm_rope_op.h"
#include "kernels/rms_norm_op.h"
#include "kernels/rope_op.h"
#include "kernels/swiglu_op.h"

namespace hearth {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Weights and context outlive the graph (contract in the header), so the autograd context carries their
// address.
template <class T>
void keep_pointer(AutogradContext* ctx, const char* key, const T* pointer) {
  ctx->saved_data[key] = reinterpret_cast<int64_t>(pointer);
}
template <class T>
const T* kept_pointer(AutogradContext* ctx, const char* key) {
  return reinterpret_cast<const T*>(ctx->saved_data[key].toInt());
}

using kernels::GradientWrite;

// Of the rows of all ranks, which are gathered: this rank's own are computed while the others are on their
// way (ModelContext::least_cut).
LinearOutput gathered_linear(const Tensor& own_nD, const LinearWeights& w, const DropoutKeys& keys,
                             const ModelContext& context, const char* site) {
  const RowCollectives& rows = context.rows;
  PendingRows gathered = rows.gather(own_nD, site);
  const int64_t count = own_nD.size(0), outputs = w.weight.size(0);
  if (!rows.splits_rows() || w.lora || count * outputs < context.least_cut)
    return linear(gathered.wait(), w, keys);
  const Tensor y = at::empty({count * rows.size(), outputs}, own_nD.options());
  const auto compute = [&](const Tensor& x, int64_t first) {
    if (x.size(0) > 0)
      kernels::linear_forward_op(x, w.weight, w.bias, kernels::KernelPath::Fused, /*residual_NM=*/{},
                                 y.narrow(0, first, x.size(0)));
  };
  const int64_t begin = rows.rank() * count, end = begin + count;
  compute(own_nD, begin);
  const Tensor all = gathered.wait();
  compute(all.narrow(0, 0, begin), 0);
  compute(all.narrow(0, end, all.size(0) - end), end);
  return {y, {}};
}

// row_linear for a group, in two parts: one half of the outputs crosses while the other is computed.
Tensor halved_row_linear(const Tensor& x, const LinearWeights& w, const Tensor& residual,
                         const RowCollectives& rows, const char* site) {
  const int64_t outputs = w.weight.size(0), half = outputs / 2;
  const auto product = [&](int64_t begin, int64_t count) {
    return rows.sum(kernels::linear_forward_op(x, w.weight.narrow(0, begin, count)), site);
  };
  PendingRows halves[] = {product(0, half), product(half, outputs - half)};
  const Tensor out = at::empty_like(residual);
  for (int64_t begin = 0; PendingRows & part : halves) {
    const Tensor sum = part.wait();
    const int64_t count = sum.size(1);
    if (w.bias.defined()) sum.add_(w.bias.narrow(0, begin, count));
    Tensor to = out.narrow(1, begin, count);
    at::add_out(to, sum, residual.narrow(1, begin, count));
    begin += count;
  }
  return out;
}

// residual + the sum over the group of the ranks' products. Alone the product itself adds the residual;
// otherwise, and for the bias, it comes once, behind the sum.
LinearOutput row_linear(const Tensor& x, const LinearWeights& w, const DropoutKeys& keys,
                        const Tensor& residual, const ModelContext& context, const char* site) {
  const RowCollectives& rows = context.rows;
  if (rows.size() == 1) return linear(x, w, keys, residual);
  const int64_t half = w.weight.size(0) / 2;
  if (!w.lora && half % 8 == 0 && x.size(0) * half >= context.least_cut)  // 8: rows of 16 bytes
    return {halved_row_linear(x, w, residual, rows, site), {}};
  LinearWeights matrix = w;
  matrix.bias.reset();
  const auto [mine, hidden] = linear(x, matrix, keys);
  Tensor out = rows.sum(mine, site).wait();
  if (w.bias.defined()) out.add_(w.bias);
  return {out.add_(residual), hidden};
}

// Weight gradients that nothing overlaps with: computed here, or deferred.
template <class Gradient>
void now_or_later(WeightGradQueue* queue, Gradient&& gradient) {
  if (queue != nullptr) {
    queue->push(std::forward<Gradient>(gradient));
  } else {
    gradient();
  }
}

struct NormGradient {
  Tensor dx;
  Tensor y;  // the norm's output, where it was asked for
};
enum class NormOutput { NotNeeded, Rebuilt };
NormGradient norm_backward(const Tensor& dy, const Tensor& x, const Tensor& rstd, const NormWeights& w,
                           const ModelContext& context, const Tensor& residual_grad = {},
                           NormOutput output = NormOutput::NotNeeded) {
  Tensor main_grad = w.main_grad;
  if (main_grad.defined()) context.events->before_gradient(w.parameters);
  NormGradient gradient;
  if (output == NormOutput::Rebuilt) {
    auto both = kernels::rms_norm_backward_recompute_op(dy, x, w.weight, rstd, main_grad, residual_grad);
    gradient = {std::move(both.dx), std::move(both.y)};
  } else {
    gradient.dx = kernels::rms_norm_backward_op(dy, x, w.weight, rstd, main_grad, residual_grad);
  }
  if (main_grad.defined()) context.events->gradient_ready(w.parameters);
  return gradient;
}

// Backward of norm -> gather -> column-parallel linear. `normed` holds this rank's rows, which are gathered
// again for the weight gradient (cheaper than keeping all rows: Korthikanti et al. 2022) while the input
// gradient is computed; that one crosses the group while the weight gradient is.
Tensor column_linear_backward(const Tensor& dy, const Tensor& normed, const LinearWeights& w,
                              const AdapterPass& pass, const ModelContext& context, WeightGradQueue* queue) {
  if (!w.trains()) return context.rows.sum(linear_input_gradient(dy, w, pass), "tp.column.dx").wait();
  if (queue != nullptr) {
    queue->push(
        [normed, &context] { return context.rows.gather(normed, "tp.column.x"); },
        [dy, pass, &w, &context](const Tensor& x) { accumulate_weight_gradient(dy, x, w, pass, context); });
    return context.rows.sum(linear_input_gradient(dy, w, pass), "tp.column.dx").wait();
  }
  PendingRows x = context.rows.gather(normed, "tp.column.x");
  PendingRows dx = context.rows.sum(linear_input_gradient(dy, w, pass), "tp.column.dx");
  accumulate_weight_gradient(dy, x.wait(), w, pass, context);
  return dx.wait();
}

// Backward of norm -> column-parallel linear, down to the norm's input; `residual_grad` is added to that.
// `kept`: the norm's output, undefined where it is rebuilt: with a group of ranks before it is gathered,
// alone by the norm's backward itself, which reads what that takes anyway.
Tensor normed_linear_backward(const Tensor& dy, const Tensor& x, const Tensor& rstd, const Tensor& kept,
                              const NormWeights& norm, const LinearWeights& w, const AdapterPass& pass,
                              const ModelContext& context, WeightGradQueue* queue,
                              const Tensor& residual_grad) {
  if (context.rows.size() > 1) {
    const Tensor normed = kept.defined() ? kept : kernels::rms_norm_forward_op(x, norm.weight, norm.eps).y;
    return norm_backward(column_linear_backward(dy, normed, w, pass, context, queue), x, rstd, norm, context,
                         residual_grad)
        .dx;
  }
  const bool trains = w.trains();
  const auto output = trains && !kept.defined() ? NormOutput::Rebuilt : NormOutput::NotNeeded;
  const auto gradient =
      norm_backward(linear_input_gradient(dy, w, pass), x, rstd, norm, context, residual_grad, output);
  if (trains)
    now_or_later(queue, [dy, normed = kept.defined() ? kept : gradient.y, pass, &w, &context] {
      accumulate_weight_gradient(dy, normed, w, pass, context);
    });
  return gradient.dx;
}

// q and k sections of [N, H + 2K, W], as views.
struct Heads {
  Tensor q, k;
};
Heads query_and_key(const Tensor& qkv, const BlockWeights& w) {
  return {qkv.narrow(1, 0, w.num_heads), qkv.narrow(1, w.num_heads, w.num_kv_heads)};
}

// A gradient that is changed in place: itself where nobody else holds it or its memory, else a copy.
Tensor writable(Tensor gradient) {
  if (!gradient.is_contiguous()) return gradient.contiguous();
  const bool alone = gradient.use_count() == 1 && gradient.storage().use_count() == 1;
  return alone ? gradient : gradient.clone();
}

// The rows of q and k as their norms take them, of what AttentionInputFn saved.
kernels::HeadNormRopeInput head_norm_input(const Tensor& before, const BlockWeights& w,
                                           const kernels::RopeTable& table, const Tensor& positions) {
  const auto [q, k] = query_and_key(before, w);
  return {q, k, w.q_norm.weight, w.k_norm.weight, table, positions};
}

struct AttentionInputFn : torch::autograd::Function<AttentionInputFn> {
  // Saves x, rstd and, with qk_norm, q and k as they were before their norms; the normalised x only without
  // recompute. The input is an output too: what the residual stream's gradient is then arrives here, where
  // the norm's backward adds it, instead of in an addition of its own.
  static variable_list forward(AutogradContext* ctx, const Tensor& x_nD, const BlockWeights* w,
                               const RopeInput& rope, const DropoutKeys& keys) {
    w->context->before_forward(w->unit);
    auto normed = kernels::rms_norm_forward_op(x_nD, w->input_norm.weight, w->input_norm.eps);
    auto [qkv, hidden] = gathered_linear(normed.y, w->qkv, keys, *w->context, "tp.qkv.x");
    qkv = qkv.view({qkv.size(0), w->num_heads + 2 * w->num_kv_heads, w->head_width});
    auto [q, k] = query_and_key(qkv, *w);
    Tensor before;
    kernels::HeadNormRopeRstd rstd;
    if (w->q_norm.weight.defined()) {
      before = qkv.narrow(1, 0, w->num_heads + w->num_kv_heads).clone(at::MemoryFormat::Contiguous);
      rstd = kernels::head_norm_rope_forward_op(head_norm_input(before, *w, rope.table, rope.positions),
                                                w->q_norm.eps, q, k);
    } else {
      kernels::rope_out_op(q, k, rope.table, rope.positions, kernels::RopeDirection::Forward, q, k);
    }
    ctx->save_for_backward({x_nD, normed.rstd, w->recompute.norm ? Tensor() : normed.y, before, rstd.q,
                            rstd.k, rope.table.cos_PD2, rope.table.sin_PD2, rope.positions, keys.rows_N,
                            hidden});
    keep_pointer(ctx, "w", w);
    return {qkv, x_nD};
  }
  // `grads` is taken by reference, so that what it holds can be taken over.
  static variable_list backward(AutogradContext* ctx, variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const ModelContext& context = *w->context;
    const Tensor &x = saved[0], &rstd = saved[1];
    const Tensor d_qkv = writable(std::move(grads[0]));
    auto [dq, dk] = query_and_key(d_qkv, *w);
    const kernels::RopeTable table{saved[6], saved[7]};
    if (w->q_norm.weight.defined()) {
      Tensor q_grad = w->q_norm.main_grad, k_grad = w->k_norm.main_grad;
      for (const NormWeights* norm : {&w->q_norm, &w->k_norm})
        if (norm->main_grad.defined()) context.events->before_gradient(norm->parameters);
      kernels::head_norm_rope_backward_op(dq, dk, head_norm_input(saved[3], *w, table, saved[8]),
                                          {saved[4], saved[5]}, q_grad, k_grad, dq, dk);
      for (const NormWeights* norm : {&w->q_norm, &w->k_norm})
        if (norm->main_grad.defined()) context.events->gradient_ready(norm->parameters);
    } else {
      kernels::rope_out_op(dq, dk, table, saved[8], kernels::RopeDirection::Backward, dq, dk);
    }
    const Tensor residual_grad = grads[1].defined() ? grads[1].contiguous() : Tensor();
    const Tensor dy = d_qkv.view({d_qkv.size(0), -1});
    const Tensor dx = normed_linear_backward(dy, x, rstd, saved[2], w->input_norm, w->qkv,
                                             adapter_pass(dy, w->qkv, saved[10], {saved[9]}), context,
                                             context.queue_of(w->unit), residual_grad);
    context.events->after_use(w->unit, UsePhase::Backward);
    return {dx, Tensor(), Tensor(), Tensor()};
  }
};

struct AttentionOutputFn : torch::autograd::Function<AttentionOutputFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& context_NE, const Tensor& residual_nD,
                        const BlockWeights* w, const DropoutKeys& keys) {
    auto [out, hidden] =
        row_linear(context_NE, w->attention_output, keys, residual_nD, *w->context, "tp.attention_output.y");
    ctx->save_for_backward({context_NE, keys.rows_N, hidden});
    keep_pointer(ctx, "w", w);
    return out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const ModelContext& context = *w->context;
    const Tensor dy = grads[0].contiguous(), input = saved[0];
    const Tensor dy_all = context.gathered_beside_filler(dy, "tp.attention_output.dy");
    const AdapterPass pass = adapter_pass(dy_all, w->attention_output, saved[2], {saved[1]});
    if (w->attention_output.trains())  // without the graph that the input belongs to
      now_or_later(context.queue_or_filler(w->unit), [dy, dy_all, pass, x = input.detach(), w, &context] {
        accumulate_weight_gradient(dy_all, x, w->attention_output, pass, context, dy);
      });
    return {linear_input_gradient(dy_all, w->attention_output, pass), dy, Tensor(), Tensor()};
  }
};

struct MlpFn : torch::autograd::Function<MlpFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_nD, const BlockWeights* w,
                        const DropoutKeys& keys) {
    const ModelContext& context = *w->context;
    auto normed =
        kernels::rms_norm_forward_op(x_nD, w->post_attention_norm.weight, w->post_attention_norm.eps);
    const LinearOutput gate_up = gathered_linear(normed.y, w->gate_up, keys, context, "tp.gate_up.x");
    const Tensor activated = kernels::swiglu_forward_op(gate_up.y);
    const LinearOutput down = row_linear(activated, w->down, keys, x_nD, context, "tp.down.y");
    ctx->save_for_backward({x_nD, normed.rstd, gate_up.y, w->recompute.norm ? Tensor() : normed.y,
                            w->recompute.swiglu ? Tensor() : activated, keys.rows_N, gate_up.hidden,
                            down.hidden});
    keep_pointer(ctx, "w", w);
    context.after_forward(w->unit);
    return down.y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<BlockWeights>(ctx, "w");
    const ModelContext& context = *w->context;
    context.events->before_use(w->unit, UsePhase::Backward);
    const auto& norm = w->post_attention_norm;
    const Tensor dy = grads[0].contiguous();
    const Tensor dy_all = context.gathered_beside_filler(dy, "tp.down.dy");
    const DropoutKeys keys{saved[5]};
    const AdapterPass pass = adapter_pass(dy_all, w->down, saved[7], keys);
    // In place: gate and up are not needed again, and the activation, where it is rebuilt, takes its
    // gradient's memory.
    Tensor d_activated = linear_input_gradient(dy_all, w->down, pass), d_gate_up = saved[2];
    const Tensor activated = saved[4].defined() ? saved[4] : d_activated;
    kernels::swiglu_backward_out_op(d_activated, saved[2], d_gate_up,
                                    saved[4].defined() ? Tensor() : activated);
    if (w->down.trains())
      now_or_later(context.queue_or_filler(w->unit), [dy_all, pass, activated, w, &context] {
        accumulate_weight_gradient(dy_all, activated, w->down, pass, context);
      });
    return {normed_linear_backward(d_gate_up, saved[0], saved[1], saved[3], norm, w->gate_up,
                                   adapter_pass(d_gate_up, w->gate_up, saved[6], keys), context,
                                   context.queue_of(w->unit),
                                   /*residual_grad=*/dy),
            Tensor(), Tensor()};
  }
};

struct RmsNormFn : torch::autograd::Function<RmsNormFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_nD, const NormWeights* w,
                        const ModelContext* context) {
    auto normed = kernels::rms_norm_forward_op(x_nD, w->weight, w->eps);
    ctx->save_for_backward({x_nD, normed.rstd});
    keep_pointer(ctx, "w", w);
    keep_pointer(ctx, "context", context);
    return normed.y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {norm_backward(grads[0].contiguous(), saved[0], saved[1], *kept_pointer<NormWeights>(ctx, "w"),
                          *kept_pointer<ModelContext>(ctx, "context"))
                .dx,
            Tensor(), Tensor()};
  }
};

struct EmbeddingFn : torch::autograd::Function<EmbeddingFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& ids_N, const VocabWeights* w,
                        const Tensor& /*anchor*/) {
    const ModelContext& context = *w->context;
    ctx->save_for_backward({ids_N});
    keep_pointer(ctx, "w", w);
    context.before_forward(w->unit);
    Tensor rows = context.rows.size() == 1
                      ? kernels::embedding_forward_op(w->linear.weight, ids_N)
                      : kernels::embedding_range_forward_op(w->linear.weight, ids_N, w->first_id);
    context.after_forward(w->unit);
    return context.rows.sum(rows, "tp.embedding.y").wait();
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto* w = kept_pointer<VocabWeights>(ctx, "w");
    const ModelContext& context = *w->context;
    Tensor main_grad = w->linear.main_grad;
    if (!main_grad.defined()) return {Tensor(), Tensor(), Tensor()};
    const Tensor dy = context.gathered_beside_filler(grads[0].contiguous(), "tp.embedding.dy");
    // The lookup touches few rows; the others must be zero.
    if (context.events->before_gradient(w->linear.parameters) == GradientWrite::Overwrite) main_grad.zero_();
    if (context.rows.size() == 1) {
      kernels::embedding_backward_op(dy, saved[0], main_grad);
    } else {
      kernels::embedding_range_backward_op(dy, saved[0], w->first_id, main_grad);
    }
    context.events->gradient_ready(w->linear.parameters);
    return {Tensor(), Tensor(), Tensor()};
  }
};

struct LinearHeadLossFn : torch::autograd::Function<LinearHeadLossFn> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x_nD, const VocabWeights* head,
                               int64_t num_sums, const ChunkLoss* loss) {
    const ModelContext& context = *head->context;
    const LinearWeights& w = head->linear;
    context.before_loss(head->unit);
    const Tensor x_ND = context.rows.gather(x_nD, "tp.head.x").wait();
    const int64_t rows = x_ND.size(0);
    const int64_t chunk = rows_per_logits_chunk(rows, w.weight.size(0), x_ND.element_size());
    Tensor dx = at::empty_like(x_ND), main_grad = w.main_grad;
    Tensor sums = at::zeros({num_sums}, x_ND.options().dtype(at::kFloat));
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const Tensor x = x_ND.narrow(0, begin, count);
      Tensor logits = linear(x, w, {}).y;
      sums.add_((*loss)(logits, begin));
      const Tensor& d_logits = logits;  // the loss writes the gradient over the logits
      kernels::linear_backward_input_op(d_logits, w.weight, kernels::KernelPath::Fused,
                                        dx.narrow(0, begin, count));
      if (!main_grad.defined()) continue;
      // Asked for anew behind every wait for other ranks, in which the bucket may have gone out. Reported
      // once, in backward.
      const GradientWrite write = context.events->before_gradient(w.parameters);
      kernels::linear_backward_weight_op(d_logits, x, main_grad, /*db_accum_M=*/nullptr, write);
    }
    context.after_forward(head->unit);
    ctx->save_for_backward({context.rows.sum(dx, "tp.head.dx").wait()});
    keep_pointer(ctx, "head", head);
    ctx->mark_non_differentiable({sums});
    return {sums[0].clone(), sums};
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    const auto* head = kept_pointer<VocabWeights>(ctx, "head");
    if (head->linear.main_grad.defined()) head->context->events->gradient_ready(head->linear.parameters);
    return {ctx->get_saved_variables()[0], Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

int64_t rows_per_logits_chunk(int64_t rows, int64_t vocab, int64_t element_bytes) {
  // The weight gradient of each chunk reads and writes the whole main gradient of the table, so chunks are
  // large.
  constexpr int64_t kChunkBytes = int64_t{1} << 30;
  const int64_t fit = std::max<int64_t>(128, kChunkBytes / (vocab * element_bytes) / 128 * 128);
  return std::min(rows, fit);
}

AttentionInput attention_input(const Tensor& x_nD, const BlockWeights& weights, const RopeInput& rope,
                               const DropoutKeys& keys) {
  auto out = AttentionInputFn::apply(x_nD, &weights, rope, keys);
  return {out[0], out[1]};
}
Tensor attention_output(const Tensor& context_NE, const Tensor& residual_nD, const BlockWeights& weights,
                        const DropoutKeys& keys) {
  return AttentionOutputFn::apply(context_NE, residual_nD, &weights, keys);
}
Tensor mlp(const Tensor& x_nD, const BlockWeights& weights, const DropoutKeys& keys) {
  return MlpFn::apply(x_nD, &weights, keys);
}
Tensor rms_norm(const Tensor& x_nD, const NormWeights& weights, const ModelContext& context) {
  return RmsNormFn::apply(x_nD, &weights, &context);
}
Tensor embedding(const Tensor& ids_N, const VocabWeights& table, const Tensor& anchor) {
  return EmbeddingFn::apply(ids_N, &table, anchor);
}
LossResult linear_head_loss(const Tensor& x_nD, const VocabWeights& head, int64_t num_sums,
                            const ChunkLoss& loss) {
  auto out = LinearHeadLossFn::apply(x_nD, &head, num_sums, &loss);
  return {out[0], out[1]};
}

Tensor chunk_cross_entropy(Tensor& logits, const Tensor& targets, const VocabWeights& head, double scale) {
  if (head.context->rows.size() == 1)
    return kernels::cross_entropy_forward_backward_op(logits, targets, scale, head.count);
  const Tensor statistics = kernels::vocab_parallel_statistics_op(logits, targets, head.first_id, head.count);
  const auto loss = kernels::vocab_parallel_loss_op(head.context->rows.gather_all(statistics, "tp.loss"),
                                                    targets, head.vocab_size);
  kernels::vocab_parallel_gradient_op(logits, targets, loss.log_sum_exp_N, head.first_id, head.count, scale);
  return loss.loss_N;
}

LossResult linear_cross_entropy(const Tensor& x_nD, const Tensor& targets_N, const VocabWeights& head,
                                double scale) {
  return linear_head_loss(x_nD, head, 1, [&](Tensor& logits, int64_t first) {
    const Tensor targets = targets_N.narrow(0, first, logits.size(0));
    return chunk_cross_entropy(logits, targets, head, scale).sum().mul(scale).view({1});
  });
}

}  // namespace hearth
