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

HEARTH_CPU_CLONES float row_max(const float* x, int64_t count) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -std::numeric_limits<float>::infinity());
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

// Fills one row's gradient in place and returns its loss.
float loss_and_gradient_row(float* row, int64_t target, int64_t valid_vocab, int64_t cols, float scale) {
  const float max = row_max(row, valid_vocab), target_logit = row[target];
  const float sum = exp_and_sum(row, max, valid_vocab);
  scale_row(row, scale / sum, valid_vocab);
  row[target] -= scale;
  std::fill(row + valid_vocab, row + cols, 0.0f);
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
// `launcher` is one of the two of cross_entropy.h; token_logprobs only reads the logits.
at::Tensor run_cuda(void (*launcher)(const CrossEntropyArgs&, cudaStream_t), const at::Tensor& logits_NV,
                    const at::Tensor& targets_N, double scale, int64_t valid_vocab, int64_t ignore_index) {
  const CudaScope scope(logits_NV);
  at::Tensor out_N = at::empty({logits_NV.size(0)}, logits_NV.options().dtype(at::kFloat));
  launcher({.dtype = kernel_dtype(logits_NV),
            .logits = logits_NV.data_ptr(),
            .targets = targets_N.const_data_ptr(),
            .targets_dtype = kernel_dtype(targets_N),
            .out = out_N.data_ptr<float>(),
            .rows = logits_NV.size(0),
            .cols = logits_NV.size(1),
            .row_stride = logits_NV.size(0) > 1 ? logits_NV.stride(0) : logits_NV.size(1),
            .valid_vocab = valid_vocab,
            .ignore_index = ignore_index,
            .scale = static_cast<float>(scale)},
           scope.stream());
  return out_N;
}
#endif

void check_inputs(const char* op, const at::Tensor& logits_NV, const at::Tensor& targets_N,
                  int64_t valid_vocab) {
  check_activation(op, "logits", logits_NV, 2);
  check_ids(op, "targets", targets_N, logits_NV.size(0), logits_NV);
  HEARTH_REQUIRE(valid_vocab > 0 && valid_vocab <= logits_NV.size(1),
                 "{}: valid_vocab must be in [1, {}], got {}", op, logits_NV.size(1), valid_vocab);
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

}  // namespace hearth::kernels
