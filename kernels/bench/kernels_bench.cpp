// The families at their shapes, on random data, one function each and nothing else, for which reason the file
// is as long as it is. A tool, not a test: it asserts nothing.
#include "kernels/bench/kernels_bench.h"

#include "base/error.h"

#ifdef HEARTH_CUDA
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/cuda/CUDAStream.h>
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/adamw_op.h"
#include "kernels/attention_op.h"
#include "kernels/bench/bench_table.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/distillation_op.h"
#include "kernels/dropout_op.h"
#include "kernels/embedding.h"
#include "kernels/embedding_op.h"
#include "kernels/gemm_op.h"
#include "kernels/head_norm_rope_op.h"
#include "kernels/nf4_op.h"
#include "kernels/rms_norm_op.h"
#include "kernels/rope_op.h"
#include "kernels/swiglu_op.h"

namespace hearth {
namespace {

using namespace kernels;
const auto kBf16 = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
const auto kFp32 = at::TensorOptions().dtype(at::kFloat).device(at::kCUDA);
const auto kInt64 = at::TensorOptions().dtype(at::kLong).device(at::kCUDA);

size_t at_set(int64_t set) {
  return static_cast<size_t>(set);
}

void bench_rms_norm(Table& table, int64_t rows, int64_t cols) {
  const double bytes = 2.0 * static_cast<double>(rows * cols);
  const int64_t sets = sets_for(2 * bytes);
  const auto x = Table::many(sets, [&] { return at::randn({rows, cols}, kBf16); });
  const auto dy = Table::many(sets, [&] { return at::randn({rows, cols}, kBf16); });
  const at::Tensor w = at::randn({cols}, kBf16), rstd = rms_norm_forward_op(x[0], w, 1e-5).rstd;
  at::Tensor dw = at::zeros({cols}, kFp32);
  const std::string shape = fmt::format("[{}, {}] bf16", rows, cols);
  table.memory_row(
      "rms_norm_forward", shape, 2 * bytes, [&](int64_t s) { rms_norm_forward_op(x[at_set(s)], w, 1e-5); },
      [&](int64_t s) { at::_fused_rms_norm(x[at_set(s)], {cols}, w, 1e-5); });
  table.memory_row(
      "rms_norm_backward", shape, 3 * bytes,
      [&](int64_t s) { rms_norm_backward_op(dy[at_set(s)], x[at_set(s)], w, rstd, dw); },
      [&](int64_t s) {
        const auto [dx, dw_new] = at::_fused_rms_norm_backward(dy[at_set(s)], x[at_set(s)], {cols},
                                                               rstd.view({rows, 1}), w, {true, true});
        dw.add_(dw_new);
      });
  // As blocks of a model have them, against the separate operations: the residual added in front of the norm;
  // its gradient added behind the norm's, and y once more for the weight gradient of the linear between.
  table.memory_row(
      "rms_norm_residual_fwd", shape, 4 * bytes,
      [&](int64_t s) { rms_norm_residual_forward_op(x[at_set(s)], dy[at_set(s)], w, 1e-5); },
      [&](int64_t s) { rms_norm_forward_op(x[at_set(s)].add(dy[at_set(s)]), w, 1e-5); });
  const at::Tensor extra = at::randn({rows, cols}, kBf16);
  table.memory_row(
      "rms_norm_backward_y", shape, 5 * bytes,
      [&](int64_t s) { rms_norm_backward_recompute_op(dy[at_set(s)], x[at_set(s)], w, rstd, dw, extra); },
      [&](int64_t s) {
        rms_norm_forward_op(x[at_set(s)], w, 1e-5);
        rms_norm_backward_op(dy[at_set(s)], x[at_set(s)], w, rstd, dw, extra);
      });
}

// The eager formulation of transformers, in the activation dtype.
at::Tensor rope_eager(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine) {
  const int64_t half = x.size(2) / 2;
  const at::Tensor rotated = at::cat({x.narrow(2, half, half).neg(), x.narrow(2, 0, half)}, 2);
  return x.mul(cosine).add(rotated.mul(sine));
}

// Of the rows of cosines and sines that rotations read, fp32.
double angle_bytes(int64_t tokens, int64_t width) {
  return 4.0 * static_cast<double>(tokens * width);
}

void bench_rope(Table& table, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width) {
  const double bytes =
      2.0 * 2.0 * static_cast<double>(tokens * (heads + kv_heads) * width) + angle_bytes(tokens, width);
  const int64_t sets = sets_for(bytes);
  const auto qkv = Table::many(sets, [&] { return at::randn({tokens, heads + 2 * kv_heads, width}, kBf16); });
  const RopeTable angles =
      rope_table(rope_inverse_frequencies({.head_dim = width}), tokens, at::Device(at::kCUDA, 0));
  const at::Tensor positions = at::arange(tokens, kInt64);
  const at::Tensor cosine = at::cat({angles.cos_PD2, angles.cos_PD2}, 1).unsqueeze(1).to(at::kBFloat16);
  const at::Tensor sine = at::cat({angles.sin_PD2, angles.sin_PD2}, 1).unsqueeze(1).to(at::kBFloat16);
  const auto q = [&](int64_t s) { return qkv[at_set(s)].narrow(1, 0, heads); };
  const auto k = [&](int64_t s) { return qkv[at_set(s)].narrow(1, heads, kv_heads); };
  table.memory_row(
      "rope", fmt::format("[{}, {}+{}, {}] bf16", tokens, heads, kv_heads, width), bytes,
      [&](int64_t s) { rope_op(q(s), k(s), angles, positions, RopeDirection::Forward); },
      [&](int64_t s) { rope_eager(q(s), cosine, sine), rope_eager(k(s), cosine, sine); });
}

// q and k of a model with qk_norm. The peer is our own operations after each other.
void bench_head_norm_rope(Table& table, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width) {
  const double bytes = 2.0 * static_cast<double>(tokens * (heads + kv_heads) * width);
  const double rstd_and_angles =
      4.0 * static_cast<double>(tokens * (heads + kv_heads)) + angle_bytes(tokens, width);
  const int64_t sets = sets_for(2 * bytes);
  const auto heads_of = [&] { return at::randn({tokens, heads + 2 * kv_heads, width}, kBf16); };
  auto qkv = Table::many(sets, heads_of), out = Table::many(sets, heads_of);
  const auto q = [&](const at::Tensor& x) { return x.narrow(1, 0, heads); };
  const auto k = [&](const at::Tensor& x) { return x.narrow(1, heads, kv_heads); };
  const RopeTable angles =
      rope_table(rope_inverse_frequencies({.head_dim = width}), tokens, at::Device(at::kCUDA, 0));
  HeadNormRopeInput in{q(qkv[0]),
                       k(qkv[0]),
                       at::randn({width}, kBf16),
                       at::randn({width}, kBf16),
                       angles,
                       at::arange(tokens, kInt64)};
  at::Tensor dwq = at::zeros({width}, kFp32), dwk = dwq.clone(), q_first = q(out[0]), k_first = k(out[0]);
  const HeadNormRopeRstd rstd = head_norm_rope_forward_op(in, 1e-6, q_first, k_first);
  const std::string shape = fmt::format("[{}, {}+{}, {}] bf16", tokens, heads, kv_heads, width);
  const auto use = [&](int64_t s) {
    in.q_NHW = q(qkv[at_set(s)]);
    in.k_NKW = k(qkv[at_set(s)]);
  };
  table.memory_row(
      "head_norm_rope_fwd", shape, 2 * bytes + rstd_and_angles,
      [&](int64_t s) {
        use(s);
        at::Tensor q_out = q(out[at_set(s)]), k_out = k(out[at_set(s)]);
        head_norm_rope_forward_op(in, 1e-6, q_out, k_out);
      },
      [&](int64_t s) {
        use(s);
        at::Tensor q_out = rms_norm_forward_op(in.q_NHW, in.q_weight_W, 1e-6).y,
                   k_out = rms_norm_forward_op(in.k_NKW, in.k_weight_W, 1e-6).y;
        rope_out_op(q_out, k_out, angles, in.positions_N, RopeDirection::Forward, q_out, k_out);
      });
  table.memory_row(
      "head_norm_rope_bwd", shape, 3 * bytes + rstd_and_angles,
      [&](int64_t s) {
        use(s);
        at::Tensor dq = q(out[at_set(s)]), dk = k(out[at_set(s)]);
        head_norm_rope_backward_op(dq, dk, in, rstd, dwq, dwk, dq, dk);
      },
      [&](int64_t s) {
        use(s);
        at::Tensor dq = q(out[at_set(s)]), dk = k(out[at_set(s)]);
        rope_out_op(dq, dk, angles, in.positions_N, RopeDirection::Backward, dq, dk);
        rms_norm_backward_op(dq, in.q_NHW, in.q_weight_W, rstd.q, dwq);
        rms_norm_backward_op(dk, in.k_NKW, in.k_weight_W, rstd.k, dwk);
      });
}

void bench_swiglu(Table& table, int64_t rows, int64_t width) {
  const double bytes = 2.0 * static_cast<double>(rows * width);
  const int64_t sets = sets_for(3 * bytes);
  const auto gu = Table::many(sets, [&] { return at::randn({rows, 2 * width}, kBf16); });
  const auto dh = Table::many(sets, [&] { return at::randn({rows, width}, kBf16); });
  const auto gate = [&](int64_t s) { return gu[at_set(s)].narrow(1, 0, width); };
  const auto up = [&](int64_t s) { return gu[at_set(s)].narrow(1, width, width); };
  const std::string shape = fmt::format("[{}, 2 x {}] bf16", rows, width);
  table.memory_row(
      "swiglu_forward", shape, 3 * bytes, [&](int64_t s) { swiglu_forward_op(gu[at_set(s)]); },
      [&](int64_t s) { at::silu(gate(s)).mul(up(s)); });
  table.memory_row(
      "swiglu_backward", shape, 5 * bytes,
      [&](int64_t s) { swiglu_backward_op(dh[at_set(s)], gu[at_set(s)]); },
      [&](int64_t s) {
        const at::Tensor d_gate = at::silu_backward(dh[at_set(s)].mul(up(s)), gate(s));
        at::cat({d_gate, dh[at_set(s)].mul(at::silu(gate(s)))}, 1);
      });
  // In place, with the activation: against the two separate operations. Values decay to zero over the
  // repeats, which costs the memory nothing.
  auto work = Table::many(sets, [&] { return at::randn({rows, 2 * width}, kBf16); });
  auto h = Table::many(sets, [&] { return at::empty({rows, width}, kBf16); });
  table.memory_row(
      "swiglu_backward_h", shape, 6 * bytes,
      [&](int64_t s) {
        swiglu_backward_out_op(dh[at_set(s)], work[at_set(s)], work[at_set(s)], h[at_set(s)]);
      },
      [&](int64_t s) {
        swiglu_forward_op(gu[at_set(s)]);
        swiglu_backward_op(dh[at_set(s)], gu[at_set(s)]);
      });
}

// Each of the three passes reads both rows, the last one writes one: seven passes over a matrix at the least.
// The peer is the plain loop: softmax of both in fp32, KL, its gradient.
void bench_distillation(Table& table, int64_t rows, int64_t vocab) {
  const double bytes = 2.0 * static_cast<double>(rows * vocab);
  const int64_t sets = sets_for(2 * bytes);
  const auto student = Table::many(sets, [&] { return at::randn({rows, vocab}, kBf16); });
  const auto teacher = Table::many(sets, [&] { return at::randn({rows, vocab}, kBf16); });
  const at::Tensor targets = at::randint(vocab, {rows}, kInt64);
  const GatherStatistics alone = [](const at::Tensor& values) { return values.unsqueeze(0); };
  table.memory_row(
      "distillation", fmt::format("2 x [{}, {}] bf16", rows, vocab), 7 * bytes,
      [&](int64_t s) {
        at::Tensor logits = student[at_set(s)];
        distillation_op(logits, teacher[at_set(s)], targets, {0, vocab, vocab},
                        {.temperature = 2.0, .kd_alpha = 0.5}, alone);
      },
      [&](int64_t s) {
        const at::Tensor log_s = student[at_set(s)].to(at::kFloat).div(2).log_softmax(1),
                         log_t = teacher[at_set(s)].to(at::kFloat).div(2).log_softmax(1), t = log_t.exp();
        t.mul(log_t.sub(log_s)).sum();
        log_s.exp().sub(t).to(at::kBFloat16);
      });
}

void bench_cross_entropy(Table& table, int64_t rows, int64_t vocab) {
  const double bytes = 2.0 * static_cast<double>(rows * vocab);
  const int64_t sets = sets_for(bytes);
  auto logits = Table::many(sets, [&] { return at::randn({rows, vocab}, kBf16); });
  const at::Tensor targets = at::randint(vocab, {rows}, kInt64), one = at::ones({}, kFp32);
  table.memory_row(
      "cross_entropy_fwd_bwd", fmt::format("[{}, {}] bf16", rows, vocab), 2 * bytes,
      [&](int64_t s) { cross_entropy_forward_backward_op(logits[at_set(s)], targets, 1.0, vocab); },
      [&](int64_t s) {
        const at::Tensor logp = at::log_softmax(logits[at_set(s)].to(at::kFloat), 1);
        const auto [loss, weight] = at::nll_loss_forward(logp, targets, {}, at::Reduction::Mean, -100);
        const at::Tensor d_logp =
            at::nll_loss_backward(one, logp, targets, {}, at::Reduction::Mean, -100, weight);
        at::_log_softmax_backward_data(d_logp, logp, 1, at::kFloat).to(at::kBFloat16);
      });
}

// One rank's share of a vocabulary that is split eight ways; the ATen column is the plain path.
void bench_vocab_parallel(Table& table, int64_t rows, int64_t vocab) {
  const int64_t columns = vocab / 8, first_id = 3 * columns;
  const double bytes = 2.0 * static_cast<double>(rows * columns);
  auto logits = Table::many(sets_for(bytes), [&] { return at::randn({rows, columns}, kBf16); });
  const at::Tensor targets = at::randint(vocab, {rows}, kInt64);
  const at::Tensor log_sum_exp = at::full({rows}, std::log(static_cast<double>(vocab)), kFp32);
  const std::string shape = fmt::format("[{}, {}] bf16", rows, columns);
  const auto statistics = [&](int64_t s, KernelPath path) {
    vocab_parallel_statistics_op(logits[at_set(s)], targets, first_id, columns, kIgnoreIndex, path);
  };
  const auto gradient = [&](int64_t s, KernelPath path) {
    vocab_parallel_gradient_op(logits[at_set(s)], targets, log_sum_exp, first_id, columns, 1.0, kIgnoreIndex,
                               path);
  };
  table.memory_row(
      "vocab_parallel_stats", shape, bytes, [&](int64_t s) { statistics(s, KernelPath::Fused); },
      [&](int64_t s) { statistics(s, KernelPath::Plain); });
  table.memory_row(
      "vocab_parallel_gradient", shape, 2 * bytes, [&](int64_t s) { gradient(s, KernelPath::Fused); },
      [&](int64_t s) { gradient(s, KernelPath::Plain); });
}

void bench_adamw(Table& table, int64_t count) {
  // The norms of a model: 128 rows of 4096 without decay, spread over the buffer.
  const at::Tensor norms = at::arange(128, kInt64).mul(count / 128);
  AdamWStep step{.master = at::randn({count}, kFp32),
                 .grad = at::randn({count}, kFp32),
                 .exp_avg = at::randn({count}, kFp32),
                 .exp_avg_sq = at::rand({count}, kFp32),
                 .model_param = at::empty({count}, kBf16),
                 .no_decay_ranges_R2 = at::stack({norms, norms.add(4096)}, 1),
                 .lr = 1e-4,
                 .weight_decay = 0.1,
                 .step = 10,
                 .grad_scale_tensor = {}};
  const at::Tensor steps = at::ones({}, kFp32);
  table.memory_row(
      "adamw", fmt::format("[{}] fp32", count), 30.0 * static_cast<double>(count),
      [&](int64_t) { adamw_step_op(step); },
      [&](int64_t) {
        at::_fused_adamw_({step.master}, {step.grad}, {step.exp_avg}, {step.exp_avg_sq}, {}, {steps}, 1e-4,
                          0.9, 0.95, 0.1, 1e-8, false, false);
        step.model_param.copy_(step.master);
      });
  // Every state in bf16, the parameters their own masters.
  AdamWStep narrow = step;
  narrow.model_param = at::Tensor();
  narrow.rounding_seed = 1;
  for (auto state : {&AdamWStep::master, &AdamWStep::grad, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
    narrow.*state = (step.*state).to(at::kBFloat16);
  table.memory_row(
      "adamw", fmt::format("[{}] bf16", count), 14.0 * static_cast<double>(count),
      [&](int64_t) { adamw_step_op(narrow); },
      [&](int64_t) {
        at::_fused_adamw_({narrow.master}, {narrow.grad}, {narrow.exp_avg}, {narrow.exp_avg_sq}, {}, {steps},
                          1e-4, 0.9, 0.95, 0.1, 1e-8, false, false);
      });
  table.memory_row(
      "sum_of_squares", fmt::format("[{}] bf16", count), 2.0 * static_cast<double>(count),
      [&](int64_t s) { sum_of_squares_op(s % 2 ? narrow.grad : narrow.master); },
      [&](int64_t s) { at::linalg_vector_norm(s % 2 ? narrow.grad : narrow.master); });
  table.memory_row(
      "sum_of_squares", fmt::format("[{}] fp32", count), 4.0 * static_cast<double>(count),
      [&](int64_t s) { sum_of_squares_op(s % 2 ? step.grad : step.master); },
      [&](int64_t s) { at::linalg_vector_norm(s % 2 ? step.grad : step.master); });
}

void bench_embedding(Table& table, int64_t tokens, int64_t vocab, int64_t width) {
  const double bytes = 2.0 * static_cast<double>(tokens * width);
  const at::Tensor weight = at::randn({vocab, width}, kBf16), dy = at::randn({tokens, width}, kBf16);
  // Squares of uniforms: low ids are frequent, as in text.
  const at::Tensor ids = at::rand({tokens}, kFp32).square().mul(static_cast<double>(vocab)).to(at::kLong);
  at::Tensor accum = at::zeros({vocab, width}, kFp32);
  const std::string shape = fmt::format("[{}] of [{}, {}]", tokens, vocab, width);
  table.memory_row(
      "embedding_forward", shape, 2 * bytes, [&](int64_t) { embedding_forward_op(weight, ids); },
      [&](int64_t) { at::embedding(weight, ids); });
  // Every token's gradient is read, and each row that a token has is read and written.
  const auto backward_row = [&](const char* op, const at::Tensor& of_ids, at::Tensor& into,
                                const Body& ours) {
    const auto touched = static_cast<double>(std::get<0>(at::_unique(of_ids)).numel() * width);
    table.memory_row(op, shape, bytes + 2.0 * static_cast<double>(into.element_size()) * touched, ours,
                     [&](int64_t) { into.add_(at::embedding_dense_backward(dy, of_ids, vocab, -1, false)); });
  };
  backward_row("embedding_backward", ids, accum, [&](int64_t) { embedding_backward_op(dy, ids, accum); });
  at::Tensor accum_bf16 = accum.to(at::kBFloat16);
  backward_row("embedding_backward_bf16", ids, accum_bf16,
               [&](int64_t) { embedding_backward_op(dy, ids, accum_bf16); });
  // The same without the sort of the ids.
  const auto [sorted, order] = at::sort(ids, /*stable=*/true, 0, false);
  const at::Tensor sorted_rows = sorted.to(at::kInt), tokens_of = order.to(at::kInt);
  const at::Tensor sums = at::empty({embedding_backward_workspace_floats(tokens, width)}, kFp32);
  backward_row("embedding_backward_only", ids, accum_bf16, [&](int64_t) {
    embedding_backward({.dtype = DType::BF16,
                        .dy = dy.const_data_ptr(),
                        .sorted_rows = sorted_rows.const_data_ptr<int32_t>(),
                        .tokens_of = tokens_of.const_data_ptr<int32_t>(),
                        .accum_dtype = DType::BF16,
                        .dtable_accum = accum_bf16.data_ptr(),
                        .workspace = sums.data_ptr<float>(),
                        .tokens = tokens,
                        .rows = vocab,
                        .width = width},
                       c10::cuda::getCurrentCUDAStream().stream());
  });
  // Half of the tokens are one id, as where sequences are padded.
  const at::Tensor padded = ids.clone();
  padded.narrow(0, tokens / 2, tokens / 2).fill_(0);
  backward_row("embedding_backward_pad", padded, accum,
               [&](int64_t) { embedding_backward_op(dy, padded, accum); });
}

// One rank's share, the first eighth of the vocabulary and so, with these ids, a third of the tokens. Bytes:
// every row of the output, and a third of the rows of the table.
void bench_embedding_range(Table& table, int64_t tokens, int64_t vocab, int64_t width) {
  const double bytes = 2.0 * static_cast<double>(tokens * width), held = std::sqrt(1.0 / 8);
  const at::Tensor share = at::randn({vocab / 8, width}, kBf16), dy = at::randn({tokens, width}, kBf16);
  const at::Tensor ids = at::rand({tokens}, kFp32).square().mul(static_cast<double>(vocab)).to(at::kLong);
  at::Tensor accum = at::zeros({vocab / 8, width}, kFp32);
  const std::string shape = fmt::format("[{}] of [{}, {}]", tokens, vocab / 8, width);
  table.memory_row(
      "embedding_range_forward", shape, (1 + held) * bytes,
      [&](int64_t) { embedding_range_forward_op(share, ids, 0); },
      [&](int64_t) { embedding_range_forward_op(share, ids, 0, KernelPath::Plain); });
  table.memory_row(
      "embedding_range_backward", shape, 5 * held * bytes,
      [&](int64_t) { embedding_range_backward_op(dy, ids, 0, accum); },
      [&](int64_t) { embedding_range_backward_op(dy, ids, 0, accum, KernelPath::Plain); });
}

void bench_gemm(Table& table, int64_t n, int64_t k, int64_t m) {
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(m);
  const double bytes = 2.0 * static_cast<double>(n * k + m * k + n * m);
  const int64_t sets = sets_for(bytes);
  const auto x = Table::many(sets, [&] { return at::randn({n, k}, kBf16); });
  const auto dy = Table::many(sets, [&] { return at::randn({n, m}, kBf16); });
  const at::Tensor w = at::randn({m, k}, kBf16);
  at::Tensor dw = at::zeros({m, k}, kFp32);
  const std::string shape = fmt::format("[{}, {}] x [{}, {}]", n, k, m, k);
  table.compute_row(
      "linear_forward", shape, flops, bytes, [&](int64_t s) { linear_forward_op(x[at_set(s)], w); },
      [&](int64_t s) { at::linear(x[at_set(s)], w); });
  table.compute_row(
      "linear_backward_input", shape, flops, bytes,
      [&](int64_t s) { linear_backward_input_op(dy[at_set(s)], w); },
      [&](int64_t s) { at::mm(dy[at_set(s)], w); });
  table.compute_row(
      "linear_backward_weight", shape, flops, bytes,
      [&](int64_t s) { linear_backward_weight_op(dy[at_set(s)], x[at_set(s)], dw); },
      [&](int64_t s) { dw.add_(at::mm(dy[at_set(s)].t(), x[at_set(s)])); });
  // The first micro-batch of a step: nothing is read. The peer gives a gradient in bf16.
  at::Tensor dw_bf16 = at::zeros({m, k}, kBf16);
  for (at::Tensor* sum : {&dw, &dw_bf16})
    table.compute_row(
        sum == &dw ? "weight_overwrite" : "weight_overwrite_bf16", shape, flops, bytes,
        [&](int64_t s) {
          linear_backward_weight_op(dy[at_set(s)], x[at_set(s)], *sum, nullptr, GradientWrite::Overwrite);
        },
        [&](int64_t s) { at::mm(dy[at_set(s)].t(), x[at_set(s)]); });
}

// Reads and writes the matrix once. The peer keeps a mask of a byte an element.
void bench_dropout(Table& table, int64_t rows, int64_t cols) {
  const double bytes = 4.0 * static_cast<double>(rows * cols);
  const int64_t sets = sets_for(bytes);
  const auto x = Table::many(sets, [&] { return at::randn({rows, cols}, kBf16); });
  const at::Tensor keys = at::arange(rows, kInt64);
  const DropoutMask mask = dropout_mask(1, 0.1, cols, 0);
  table.memory_row(
      "dropout", fmt::format("[{}, {}] bf16", rows, cols), bytes,
      [&](int64_t s) { dropout_op(x[at_set(s)], keys, mask); },
      [&](int64_t s) { at::native_dropout(x[at_set(s)], 0.1, true); });
}

// A matrix of a layer; bytes: codes and 8-bit scales read, bf16 written. Against the same in ATen operations.
void bench_nf4(Table& table, int64_t rows, int64_t columns) {
  const int64_t count = rows * columns, blocks = count / kNf4Block;
  const double bytes = (0.5 + 1.0 / kNf4Block + 2.0) * static_cast<double>(count);
  const auto bytes_of = [](int64_t size) {
    return at::randint(256, {size}, at::TensorOptions(at::kCUDA).dtype(at::kByte));
  };
  const Nf4Part part{.codes = bytes_of(count / 2),
                     .scales_B = bytes_of(blocks),
                     .groups_G = at::rand({(blocks + kNf4Group - 1) / kNf4Group}, kFp32),
                     .dynamic_map = nf4_dynamic_map().to(at::kCUDA),
                     .mean = 0.05f,
                     .place = {.first = 0, .run = blocks, .stride = 0}};
  auto out = Table::many(sets_for(bytes), [&] { return at::empty({count}, kBf16); });
  table.memory_row(
      "nf4_dequantize", fmt::format("[{}, {}] bf16", rows, columns), bytes,
      [&](int64_t s) { nf4_dequantize_op(part, out[at_set(s)]); },
      [&](int64_t s) { nf4_dequantize_op(part, out[at_set(s)], KernelPath::Plain); });
}

// First rows of documents with log-normal lengths (sigma 1) of the given mean, cut at the ends of sequences.
std::vector<int32_t> random_documents(int64_t batch, int64_t sequence, double mean) {
  const CounterRng rng(7, uint64_t{1});
  std::vector<int32_t> starts;
  uint64_t draws = 0;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t at = 0; at < sequence;) {
      starts.push_back(static_cast<int32_t>(b * sequence + at));
      at += std::max<int64_t>(1, static_cast<int64_t>(mean * std::exp(rng.normal(draws++) - 0.5)));
    }
  return starts;
}

// Multiply-adds of the two products of the forward pass, counted causal and within documents; the backward
// pass has five. The ATen column: scaled_dot_product_attention for sequences, FlashAttention-2 for documents,
// each with what putting its three gradients together costs.
void bench_attention(Table& table, int64_t batch, int64_t sequence, const AttentionHeads& heads,
                     double mean) {
  const int64_t rows = batch * sequence, all = heads.query + 2 * heads.kv;
  AttentionCall call{batch, sequence, heads, nullptr};
  std::vector<int32_t> borders;
  if (mean > 0) borders = random_documents(batch, sequence, mean);
  if (mean == 0)
    for (int64_t b = 0; b < batch; ++b) borders.push_back(static_cast<int32_t>(b * sequence));
  std::vector<int32_t> starts = borders;
  borders.push_back(static_cast<int32_t>(rows));
  double pairs = 0;
  int64_t longest = 0;
  for (size_t i = 0; i + 1 < borders.size(); ++i) {
    const int64_t length = borders[i + 1] - borders[i];
    pairs += 0.5 * static_cast<double>(length * (length + 1));
    longest = std::max(longest, length);
  }
  const at::Tensor cu_seqlens = at::tensor(borders, at::TensorOptions(at::kInt)).to(at::kCUDA);
  if (mean > 0) {
    auto documents = attention_documents(std::move(starts), rows, sequence);
    documents.table =
        at::tensor(attention_document_table(documents, heads), at::TensorOptions(at::kLong)).to(at::kCUDA);
    call.documents = std::make_shared<const AttentionDocuments>(std::move(documents));
  }
  const double flops = 4.0 * pairs * static_cast<double>(heads.query * heads.width);
  const double bytes = 2.0 * static_cast<double>(rows * (all + heads.query) * heads.width);
  const auto qkv = Table::many(sets_for(bytes), [&] { return at::randn({rows, all, heads.width}, kBf16); });
  const at::Tensor d_out = at::randn({rows, heads.query * heads.width}, kBf16);
  const AttentionResult forward = attention_forward_op(qkv[0], call);

  // With a graph for the backward row, which is built before the clock runs.
  const auto peer_forward = [&](const at::Tensor& x) {
    const auto parts = x.split_with_sizes({heads.query, heads.kv, heads.kv}, 1);
    if (mean > 0)
      return std::get<0>(at::_flash_attention_forward(parts[0], parts[1], parts[2], cu_seqlens, cu_seqlens,
                                                      longest, longest, 0.0, true, false,
                                                      1.0 / std::sqrt(static_cast<double>(heads.width))))
          .reshape({rows, -1});
    const auto by_head = [&](const at::Tensor& part) {
      return part.view({batch, sequence, part.size(1), part.size(2)}).transpose(1, 2);
    };
    return at::scaled_dot_product_attention(by_head(parts[0]), by_head(parts[1]), by_head(parts[2]), {}, 0.0,
                                            true, {}, heads.query != heads.kv)
        .transpose(1, 2)
        .reshape({rows, -1});
  };
  at::Tensor leaf = qkv[0].detach().requires_grad_(true);
  const at::Tensor peer_out = peer_forward(leaf);

  const std::string shape =
      fmt::format("{}x{} {}+{} w{}{}", batch, sequence, heads.query, heads.kv, heads.width,
                  mean > 0 ? fmt::format(" {} docs", borders.size() - 1) : "");
  table.compute_row(
      "attention_forward", shape, flops, bytes,
      [&](int64_t s) { attention_forward_op(qkv[at_set(s)], call); },
      [&](int64_t s) {
        const at::NoGradGuard no_grad;
        peer_forward(qkv[at_set(s)]);
      });
  table.compute_row(
      "attention_backward", shape, 2.5 * flops, 2 * bytes,
      [&](int64_t) { attention_backward_op(d_out, qkv[0], forward, call); },
      [&](int64_t) {
        leaf.mutable_grad() = at::Tensor();
        peer_out.backward(d_out, /*retain_graph=*/true);
      });
}

void run(const std::string& filter) {
  at::manual_seed(1);
  Table table(filter);
  if (table.wants("rms_norm")) {
    bench_rms_norm(table, 16384, 2048);
    bench_rms_norm(table, 16384, 4096);
    bench_rms_norm(table, 32768, 576);
    bench_rms_norm(table, 16384 * 32, 128);  // heads of q
  }
  if (table.wants("rope")) {
    bench_rope(table, 16384, 32, 8, 64);
    bench_rope(table, 8192, 32, 8, 128);
    bench_rope(table, 32768, 9, 3, 64);
  }
  if (table.wants("head_norm_rope")) {
    bench_head_norm_rope(table, 8192, 32, 8, 128);
    bench_head_norm_rope(table, 16384, 16, 8, 128);
  }
  if (table.wants("swiglu")) {
    bench_swiglu(table, 16384, 8192);
    bench_swiglu(table, 32768, 1536);
  }
  if (table.wants("cross_entropy")) {
    bench_cross_entropy(table, 4096, 128256);
    bench_cross_entropy(table, 4096, 151936);
    bench_cross_entropy(table, 8192, 49152);
    bench_cross_entropy(table, 8192, 32000);
    bench_cross_entropy(table, 16384, 16032);
  }
  if (table.wants("distillation")) bench_distillation(table, 1024, 128256);
  if (table.wants("dropout")) {
    bench_dropout(table, 8192, 2048);
    bench_dropout(table, 8192, 8192);
  }
  if (table.wants("vocab_parallel")) {
    bench_vocab_parallel(table, 8192, 128256);
    bench_vocab_parallel(table, 32768, 32000);
  }
  if (table.wants("adamw")) bench_adamw(table, int64_t{1} << 28);
  if (table.wants("embedding")) {
    bench_embedding(table, 16384, 128256, 2048);
    bench_embedding(table, 32768, 49152, 576);
    bench_embedding_range(table, 16384, 128256, 2048);
  }
  if (table.wants("nf4")) {
    bench_nf4(table, 4096, 4096);
    bench_nf4(table, 14336, 4096);
  }
  if (table.wants("attention"))
    for (const double mean : {0.0, 600.0}) {
      bench_attention(table, 4, 4096, {32, 8, 64}, mean);
      bench_attention(table, 1, 8192, {32, 8, 128}, mean);
      bench_attention(table, 16, 2048, {9, 3, 64}, mean);
    }
  if (table.wants("gemm")) {
    bench_gemm(table, 16384, 2048, 16384);
    bench_gemm(table, 16384, 4096, 4096);
    bench_gemm(table, 32768, 576, 3072);
  }
}

}  // namespace

namespace kernels {

void bench_kernels(const std::string& filter) {
  HEARTH_CHECK(at::detail::getCUDAHooks().deviceCount() > 0, Cuda,
               "hearth bench kernels: no CUDA device on this machine");
  run(filter);
}

}  // namespace kernels
}  // namespace hearth

#else

namespace hearth::kernels {

void bench_kernels(const std::string&) {
  fail(ErrorKind::Cuda, "hearth bench kernels: this program was built without CUDA");
}

}  // namespace hearth::kernels

#endif
