#include "kernels/cross_entropy_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cross_entropy.h"
#include "kernels/cuda_scope.h"
#endif

namespace hearth::kernels {
namespace {

using cpu::kLanes;

constexpr int64_t kNoColumn = -1;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

HEARTH_CPU_CLONES float row_max(const float* x, int64_t count) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, kMinusInfinity);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] = x[i] > lanes[j] ? x[i] : lanes[j];
  return *std::max_element(lanes, lanes + kLanes);
}

HEARTH_CPU_CLONES float sum_of_exp(const float* x, float max, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += cpu::exp_fast(x[i + j] - max);
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += cpu::exp_fast(x[i] - max);
  float sum = 0.0f;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

// The same, leaving the exponentials in x: the gradient needs them once more.
HEARTH_CPU_CLONES float exp_and_sum(float* x, float max, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const float e = cpu::exp_fast(x[i + j] - max);
      x[i + j] = e;
      lanes[j] += e;
    }
  for (int64_t j = 0; i < count; ++i, ++j) {
    x[i] = cpu::exp_fast(x[i] - max);
    lanes[j] += x[i];
  }
  float sum = 0.0f;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

HEARTH_CPU_CLONES void scale_row(float* x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

struct Targets {
  const int64_t* data;
  int64_t ignore_index;
};

// Turns a row of exponentials into its gradient. target: a valid column, or kNoColumn.
void gradient_row(float* row, int64_t target, float factor, float scale, int64_t valid_vocab, int64_t cols) {
  scale_row(row, factor, valid_vocab);
  if (target != kNoColumn) row[target] -= scale;
  std::fill(row + valid_vocab, row + cols, 0.0f);
}

// Fills one row's gradient in place and returns its loss.
float loss_and_gradient_row(float* row, int64_t target, int64_t valid_vocab, int64_t cols, float scale) {
  const float max = row_max(row, valid_vocab), target_logit = row[target];
  const float sum = exp_and_sum(row, max, valid_vocab);
  gradient_row(row, target, scale / sum, scale, valid_vocab, cols);
  return std::log(sum) + max - target_logit;
}

at::Tensor forward_backward_cpu(at::Tensor& logits_NV, const Targets& targets, double scale,
                                int64_t valid_vocab) {
  at::Tensor wide = logits_NV.scalar_type() == at::kFloat ? logits_NV : logits_NV.to(at::kFloat).contiguous();
  const int64_t rows = wide.size(0), cols = wide.size(1), stride = wide.stride(0);
  at::Tensor loss_N = at::empty({rows}, wide.options());
  float *x = wide.data_ptr<float>(), *loss = loss_N.data_ptr<float>();
  at::parallel_for(0, rows, cpu::grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = x + r * stride;
      const int64_t target = targets.data[r];
      if (target == targets.ignore_index) {
        std::fill(row, row + cols, 0.0f);
        loss[r] = 0.0f;
      } else {
        loss[r] = loss_and_gradient_row(row, target, valid_vocab, cols, static_cast<float>(scale));
      }
    }
  });
  if (!wide.is_same(logits_NV)) logits_NV.copy_(wide);
  return loss_N;
}

at::Tensor logprobs_cpu(const at::Tensor& logits_NV, const Targets& targets, int64_t valid_vocab) {
  const at::Tensor wide = widen(logits_NV);
  const int64_t rows = wide.size(0), stride = wide.stride(0);
  at::Tensor out_N = at::empty({rows}, wide.options());
  const float* x = wide.const_data_ptr<float>();
  float* out = out_N.data_ptr<float>();
  at::parallel_for(0, rows, cpu::grain_rows(wide.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x + r * stride;
      const int64_t target = targets.data[r];
      if (target == targets.ignore_index) {
        out[r] = 0.0f;
        continue;
      }
      const float max = row_max(row, valid_vocab);
      out[r] = row[target] - max - std::log(sum_of_exp(row, max, valid_vocab));
    }
  });
  return out_N;
}

// The columns of a share: ids [first_id, first_id + valid) of the vocabulary.
struct Share {
  int64_t first_id, valid, ignore_index;
  int64_t column_of(int64_t id) const {
    return id >= first_id && id < first_id + valid && id != ignore_index ? id - first_id : kNoColumn;
  }
};

at::Tensor statistics_cpu(const at::Tensor& logits_NV, const at::Tensor& targets_N, const Share& share) {
  const at::Tensor wide = widen(logits_NV);
  const int64_t rows = wide.size(0), stride = wide.stride(0);
  at::Tensor stats_N3 = at::empty({rows, 3}, wide.options());
  const float* x = wide.const_data_ptr<float>();
  const int64_t* targets = targets_N.const_data_ptr<int64_t>();
  float* out = stats_N3.data_ptr<float>();
  at::parallel_for(0, rows, cpu::grain_rows(share.valid), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *row = x + r * stride, max = row_max(row, share.valid);
      const int64_t column = share.column_of(targets[r]);
      out[3 * r] = max;
      // Without a column above -inf any finite shift gives the sum of 0 (and keeps a NaN).
      out[3 * r + 1] = sum_of_exp(row, max == kMinusInfinity ? 0.0f : max, share.valid);
      out[3 * r + 2] = column == kNoColumn ? 0.0f : row[column];
    }
  });
  return stats_N3;
}

void share_gradient_cpu(at::Tensor& logits_NV, const at::Tensor& targets_N, const at::Tensor& log_sum_exp_N,
                        const Share& share, float scale) {
  at::Tensor wide = widen(logits_NV);
  const int64_t rows = wide.size(0), cols = wide.size(1), stride = wide.stride(0);
  float* x = wide.data_ptr<float>();
  const float* log_sum_exp = log_sum_exp_N.const_data_ptr<float>();
  const int64_t* targets = targets_N.const_data_ptr<int64_t>();
  at::parallel_for(0, rows, cpu::grain_rows(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = x + r * stride;
      if (targets[r] == share.ignore_index) {
        std::fill(row, row + cols, 0.0f);
        continue;
      }
      exp_and_sum(row, log_sum_exp[r], share.valid);  // the sum over the share is not needed
      gradient_row(row, share.column_of(targets[r]), scale, scale, share.valid, cols);
    }
  });
  if (!wide.is_same(logits_NV)) logits_NV.copy_(wide);
}

// Bool [N]: targets that are a column of the share. targets: int64.
at::Tensor on_share(const at::Tensor& targets_N, const Share& share) {
  return targets_N.ge(share.first_id)
      .logical_and_(targets_N.lt(share.first_id + share.valid))
      .logical_and_(targets_N.ne(share.ignore_index));
}

at::Tensor statistics_plain(const at::Tensor& logits_NV, const at::Tensor& targets_N, const Share& share) {
  const at::Tensor logits = logits_NV.narrow(1, 0, share.valid).to(at::kFloat);
  at::Tensor stats_N3 = at::zeros({logits.size(0), 3}, logits.options());
  if (share.valid == 0) {
    stats_N3.select(1, 0).fill_(kMinusInfinity);
    return stats_N3;
  }
  const at::Tensor targets = targets_N.to(at::kLong), inside = on_share(targets, share);
  const at::Tensor column = targets.sub(share.first_id).masked_fill_(inside.logical_not(), 0);
  const at::Tensor max = logits.amax({1}), shift = max.masked_fill(max.eq(kMinusInfinity), 0.0);
  stats_N3.select(1, 0).copy_(max);
  stats_N3.select(1, 1).copy_(logits.sub(shift.unsqueeze(1)).exp_().sum(1));
  stats_N3.select(1, 2).copy_(
      logits.gather(1, column.unsqueeze(1)).squeeze(1).masked_fill_(inside.logical_not(), 0.0));
  return stats_N3;
}

void share_gradient_plain(at::Tensor& logits_NV, const at::Tensor& targets_N, const at::Tensor& log_sum_exp_N,
                          const Share& share, double scale) {
  at::Tensor gradient =
      logits_NV.narrow(1, 0, share.valid).to(at::kFloat).sub(log_sum_exp_N.unsqueeze(1)).exp_();
  const at::Tensor targets = targets_N.to(at::kLong), inside = on_share(targets, share);
  if (share.valid > 0) {
    const at::Tensor column = targets.sub(share.first_id).masked_fill_(inside.logical_not(), 0);
    gradient.scatter_add_(1, column.unsqueeze(1), inside.to(at::kFloat).neg_().unsqueeze(1));
  }
  gradient.mul_(scale).masked_fill_(targets.eq(share.ignore_index).unsqueeze(1), 0.0);
  logits_NV.zero_();
  logits_NV.narrow(1, 0, share.valid).copy_(gradient);
}

// -log p(target) with 0 in ignored rows.
at::Tensor loss_plain(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& ignored) {
  const at::Tensor index = targets.masked_fill(ignored, 0).unsqueeze(1);
  const at::Tensor loss = at::logsumexp(logits, {1}).sub(logits.gather(1, index).squeeze(1));
  return loss.masked_fill(ignored, 0.0);
}

at::Tensor forward_backward_plain(at::Tensor& logits_NV, const at::Tensor& targets_N, double scale,
                                  int64_t valid_vocab, int64_t ignore_index) {
  const at::Tensor targets = targets_N.to(at::kLong), ignored = targets.eq(ignore_index);
  const at::Tensor logits = logits_NV.narrow(1, 0, valid_vocab).to(at::kFloat);
  const at::Tensor loss_N = loss_plain(logits, targets, ignored);
  at::Tensor gradient = at::softmax(logits, 1);
  const at::Tensor index = targets.masked_fill(ignored, 0).unsqueeze(1);
  gradient.scatter_add_(1, index, at::zeros(index.sizes(), gradient.options()).sub(1.0));
  gradient = gradient.mul(scale).masked_fill(ignored.unsqueeze(1), 0.0);
  logits_NV.zero_();
  logits_NV.narrow(1, 0, valid_vocab).copy_(gradient);
  return loss_N;
}

#ifdef HEARTH_CUDA
// What all launchers take; they write to `out`.
CrossEntropyArgs cuda_args(const at::Tensor& logits_NV, const at::Tensor& targets_N, int64_t valid_vocab,
                           int64_t ignore_index, double scale, float* out) {
  return {.dtype = kernel_dtype(logits_NV),
          .logits = logits_NV.data_ptr(),
          .targets = targets_N.const_data_ptr(),
          .targets_dtype = kernel_dtype(targets_N),
          .out = out,
          .rows = logits_NV.size(0),
          .cols = logits_NV.size(1),
          .row_stride = logits_NV.size(0) > 1 ? logits_NV.stride(0) : logits_NV.size(1),
          .valid_vocab = valid_vocab,
          .ignore_index = ignore_index,
          .scale = static_cast<float>(scale)};
}

// `launcher` is one of the first two of cross_entropy.h; token_logprobs only reads the logits.
at::Tensor run_cuda(void (*launcher)(const CrossEntropyArgs&, cudaStream_t), const at::Tensor& logits_NV,
                    const at::Tensor& targets_N, double scale, int64_t valid_vocab, int64_t ignore_index) {
  const CudaScope scope(logits_NV);
  at::Tensor out_N = at::empty({logits_NV.size(0)}, logits_NV.options().dtype(at::kFloat));
  launcher(cuda_args(logits_NV, targets_N, valid_vocab, ignore_index, scale, out_N.data_ptr<float>()),
           scope.stream());
  return out_N;
}

at::Tensor statistics_cuda(const at::Tensor& logits_NV, const at::Tensor& targets_N, const Share& share) {
  const CudaScope scope(logits_NV);
  at::Tensor stats_N3 = at::empty({logits_NV.size(0), 3}, logits_NV.options().dtype(at::kFloat));
  CrossEntropyArgs args = cuda_args(logits_NV, targets_N, share.valid, share.ignore_index, /*scale=*/0.0,
                                    stats_N3.data_ptr<float>());
  args.first_id = share.first_id;
  vocab_parallel_statistics(args, scope.stream());
  return stats_N3;
}

void share_gradient_cuda(at::Tensor& logits_NV, const at::Tensor& targets_N, const at::Tensor& log_sum_exp_N,
                         const Share& share, double scale) {
  const CudaScope scope(logits_NV);
  CrossEntropyArgs args =
      cuda_args(logits_NV, targets_N, share.valid, share.ignore_index, scale, /*out=*/nullptr);
  args.first_id = share.first_id;
  args.log_sum_exp = log_sum_exp_N.const_data_ptr<float>();
  vocab_parallel_gradient(args, scope.stream());
}
#endif

void check_inputs(const char* op, const at::Tensor& logits_NV, const at::Tensor& targets_N,
                  int64_t valid_vocab) {
  check_activation(op, "logits", logits_NV, 2);
  check_ids(op, "targets", targets_N, logits_NV.size(0), logits_NV);
  HEARTH_REQUIRE(valid_vocab > 0 && valid_vocab <= logits_NV.size(1),
                 "{}: valid_vocab must be in [1, {}], got {}", op, logits_NV.size(1), valid_vocab);
}

void check_share(const char* op, const at::Tensor& logits_NV, const at::Tensor& targets_N,
                 const Share& share) {
  check_activation(op, "logits", logits_NV, 2);
  check_ids(op, "targets", targets_N, logits_NV.size(0), logits_NV);
  HEARTH_REQUIRE(share.valid >= 0 && share.valid <= logits_NV.size(1),
                 "{}: valid_columns must be in [0, {}], got {}", op, logits_NV.size(1), share.valid);
  HEARTH_REQUIRE(share.first_id >= 0, "{}: first_id must be >= 0, got {}", op, share.first_id);
}

void check_targets_cpu(const char* op, const Targets& targets, int64_t count, int64_t valid_vocab) {
  for (int64_t n = 0; n < count; ++n) {
    const int64_t target = targets.data[n];
    HEARTH_REQUIRE((target >= 0 && target < valid_vocab) || target == targets.ignore_index,
                   "{}: target {} at row {} is outside the vocabulary of {}", op, target, n, valid_vocab);
  }
}

}  // namespace

at::Tensor cross_entropy_forward_backward_op(at::Tensor& logits_NV, const at::Tensor& targets_N, double scale,
                                             int64_t valid_vocab, int64_t ignore_index, KernelPath path) {
  constexpr const char* kOp = "cross_entropy_forward_backward";
  check_inputs(kOp, logits_NV, targets_N, valid_vocab);
  if (path == KernelPath::Plain)
    return forward_backward_plain(logits_NV, targets_N, scale, valid_vocab, ignore_index);
#ifdef HEARTH_CUDA
  if (logits_NV.is_cuda())
    return run_cuda(cross_entropy_forward_backward, logits_NV, targets_N, scale, valid_vocab, ignore_index);
#endif
  const at::Tensor wide_targets = targets_N.to(at::kLong);
  const Targets targets{wide_targets.const_data_ptr<int64_t>(), ignore_index};
  check_targets_cpu(kOp, targets, wide_targets.numel(), valid_vocab);
  return forward_backward_cpu(logits_NV, targets, scale, valid_vocab);
}

at::Tensor token_logprobs_op(const at::Tensor& logits_NV, const at::Tensor& targets_N, int64_t valid_vocab,
                             int64_t ignore_index, KernelPath path) {
  check_inputs("token_logprobs", logits_NV, targets_N, valid_vocab);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && logits_NV.is_cuda())
    return run_cuda(token_logprobs, logits_NV, targets_N, 0.0, valid_vocab, ignore_index);
#endif
  if (path == KernelPath::Plain) {
    const at::Tensor targets = targets_N.to(at::kLong);
    const at::Tensor logits = logits_NV.narrow(1, 0, valid_vocab).to(at::kFloat);
    return loss_plain(logits, targets, targets.eq(ignore_index)).neg();
  }
  const at::Tensor wide_targets = targets_N.to(at::kLong);
  const Targets targets{wide_targets.const_data_ptr<int64_t>(), ignore_index};
  check_targets_cpu("token_logprobs", targets, wide_targets.numel(), valid_vocab);
  return logprobs_cpu(logits_NV, targets, valid_vocab);
}

at::Tensor vocab_parallel_statistics_op(const at::Tensor& logits_NV, const at::Tensor& targets_N,
                                        int64_t first_id, int64_t valid_columns, int64_t ignore_index,
                                        KernelPath path) {
  const Share share{first_id, valid_columns, ignore_index};
  check_share("vocab_parallel_statistics", logits_NV, targets_N, share);
  if (path == KernelPath::Plain) return statistics_plain(logits_NV, targets_N, share);
#ifdef HEARTH_CUDA
  if (logits_NV.is_cuda()) return statistics_cuda(logits_NV, targets_N, share);
#endif
  return statistics_cpu(logits_NV, targets_N.to(at::kLong), share);
}

VocabParallelLoss vocab_parallel_loss_op(const at::Tensor& stats_TN3, const at::Tensor& targets_N,
                                         int64_t vocab_size, int64_t ignore_index) {
  constexpr const char* kOp = "vocab_parallel_loss";
  HEARTH_REQUIRE(stats_TN3.defined() && stats_TN3.scalar_type() == at::kFloat && stats_TN3.dim() == 3 &&
                     stats_TN3.size(0) > 0 && stats_TN3.size(2) == 3,
                 "{}: statistics must be fp32 [shares, rows, 3], got {}", kOp, describe(stats_TN3));
  check_ids(kOp, "targets", targets_N, stats_TN3.size(1), stats_TN3);
  HEARTH_REQUIRE(vocab_size > 0, "{}: vocab_size must be > 0, got {}", kOp, vocab_size);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor targets = targets_N.to(at::kLong), ignored = targets.eq(ignore_index);
  const at::Tensor nowhere =
      targets.lt(0).logical_or_(targets.ge(vocab_size)).logical_and_(targets.ne(ignore_index));
  const at::Tensor max_TN = stats_TN3.select(2, 0), max_N = max_TN.amax({0});
  const at::Tensor log_sum_N = stats_TN3.select(2, 1).mul(max_TN.sub(max_N).exp_()).sum(0).log_();
  const at::Tensor target_N = stats_TN3.select(2, 2).sum(0);  // exact: all but one are 0
  // max - target first: for large logits it keeps the digits that log_sum_exp rounds away.
  return {log_sum_N.add(max_N.sub(target_N)).masked_fill_(nowhere, kNaN).masked_fill_(ignored, 0.0),
          log_sum_N.add(max_N).masked_fill_(nowhere, kNaN)};
}

void vocab_parallel_gradient_op(at::Tensor& logits_NV, const at::Tensor& targets_N,
                                const at::Tensor& log_sum_exp_N, int64_t first_id, int64_t valid_columns,
                                double scale, int64_t ignore_index, KernelPath path) {
  constexpr const char* kOp = "vocab_parallel_gradient";
  const Share share{first_id, valid_columns, ignore_index};
  check_share(kOp, logits_NV, targets_N, share);
  check_fp32_flat(kOp, "log_sum_exp", log_sum_exp_N, logits_NV.size(0), logits_NV);
  if (path == KernelPath::Plain)
    return share_gradient_plain(logits_NV, targets_N, log_sum_exp_N, share, scale);
#ifdef HEARTH_CUDA
  if (logits_NV.is_cuda()) return share_gradient_cuda(logits_NV, targets_N, log_sum_exp_N, share, scale);
#endif
  share_gradient_cpu(logits_NV, targets_N.to(at::kLong), log_sum_exp_N, share, static_cast<float>(scale));
}

}  // namespace hearth::kernels
