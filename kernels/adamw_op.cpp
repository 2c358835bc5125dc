#include "kernels/adamw_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/adamw_scalars.h"
#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/adamw.h"
#include "kernels/cuda_scope.h"
#endif

namespace hearth::kernels {
namespace {

AdamWScalars scalars_of(const AdamWStep& s) {
  const double correction1 = 1 - std::pow(s.beta1, static_cast<double>(s.step));
  const double correction2 = 1 - std::pow(s.beta2, static_cast<double>(s.step));
  return {static_cast<float>(s.grad_scale),          static_cast<float>(1 - s.lr * s.weight_decay),
          static_cast<float>(1 - s.beta1),           static_cast<float>(s.beta2),
          static_cast<float>(1 - s.beta2),           static_cast<float>(s.eps),
          static_cast<float>(-(s.lr / correction1)), static_cast<float>(std::sqrt(correction2))};
}

struct Buffers {
  float* master;
  const float* grad;
  float *exp_avg, *exp_avg_sq;
};

// Operation by operation what torch.optim.AdamW does: mul_, lerp_, addcmul_, sqrt, div, add, addcdiv_.
HEARTH_CPU_CLONES void update_range(Buffers b, AdamWScalars s, float decay, int64_t begin, int64_t end) {
  float* __restrict master = b.master;
  float* __restrict exp_avg = b.exp_avg;
  float* __restrict exp_avg_sq = b.exp_avg_sq;
  const float* __restrict grad = b.grad;
  for (int64_t i = begin; i < end; ++i) {
    const float g = grad[i] * s.grad_scale;
    const float p = master[i] * decay;
    const float m = exp_avg[i] + s.beta1_rest * (g - exp_avg[i]);
    const float v = exp_avg_sq[i] * s.beta2 + s.beta2_rest * g * g;
    const float denominator = __builtin_sqrtf(v) / s.bias_correction2_sqrt + s.eps;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    master[i] = p + s.negative_step_size * m / denominator;
  }
}

struct Range {
  int64_t begin, end;
};

// Checks that the ranges are sorted, disjoint and inside [0, count).
std::vector<Range> read_ranges(const at::Tensor& ranges_R2, int64_t count) {
  std::vector<Range> out;
  if (!ranges_R2.defined()) return out;
  const int64_t* data = ranges_R2.const_data_ptr<int64_t>();
  int64_t previous_end = 0;
  for (int64_t r = 0; r < ranges_R2.size(0); ++r) {
    out.push_back({data[2 * r], data[2 * r + 1]});
    HEARTH_REQUIRE(
        out.back().begin >= previous_end && out.back().end >= out.back().begin && out.back().end <= count,
        "adamw: no_decay range {} = [{}, {}) must start at {} or later and end within {} elements", r,
        out.back().begin, out.back().end, previous_end, count);
    previous_end = out.back().end;
  }
  return out;
}

// Walks [begin, end) in pieces of one decay each.
template <class Update>
void for_each_piece(const std::vector<Range>& ranges, int64_t begin, int64_t end, float decay,
                    Update&& update) {
  auto range =
      std::partition_point(ranges.begin(), ranges.end(), [&](const Range& r) { return r.end <= begin; });
  while (begin < end) {
    const bool inside = range != ranges.end() && range->begin <= begin;
    int64_t stop = end;
    if (range != ranges.end()) stop = std::min(end, inside ? range->end : range->begin);
    if (stop > begin) update(begin, stop, inside ? 1.0f : decay);
    begin = stop;
    if (inside) ++range;
  }
}

// `to` (bf16) receives the fp32 values, rounded at random as the kernel does it.
void round_state(const at::Tensor& to, const at::Tensor& values, uint64_t seed, AdamWState state) {
  const float* in = values.const_data_ptr<float>();
  auto* out = static_cast<uint16_t*>(to.data_ptr());
  std::array<uint32_t, kRoundingGroup> factors;
  for (int place = 0; place < kRoundingGroup; ++place)
    factors[static_cast<size_t>(place)] = rounding_factor(place, state);
  at::parallel_for(0, values.numel(), cpu::kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t draw = rounding_draw(seed, static_cast<uint64_t>(i / kRoundingGroup));
      const uint32_t random = rounding_bits(draw, factors[static_cast<size_t>(i % kRoundingGroup)]);
      out[i] = static_cast<uint16_t>(stochastic_bf16_bits(std::bit_cast<uint32_t>(in[i]), random));
    }
  });
}

// A step with states in bf16: on fp32 copies, which then are rounded.
template <class Step>
void on_wide_states(const AdamWStep& step, const Step& run) {
  AdamWStep wide = step;
  at::Tensor AdamWStep::*const states[] = {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq};
  for (auto state : states) wide.*state = (step.*state).to(at::kFloat);
  run(wide);
  for (int i = 0; i < 3; ++i)
    if (const at::Tensor& to = step.*states[i]; to.scalar_type() == at::kBFloat16) {
      to.is_cpu() ? round_state(to, wide.*states[i], step.rounding_seed, static_cast<AdamWState>(i))
                  : static_cast<void>(to.copy_(wide.*states[i]));
    }
}

bool has_bf16_states(const AdamWStep& step) {
  return step.master.scalar_type() == at::kBFloat16 || step.exp_avg.scalar_type() == at::kBFloat16 ||
         step.exp_avg_sq.scalar_type() == at::kBFloat16;
}

void step_cpu(const AdamWStep& step, AdamWScalars scalars) {
  if (has_bf16_states(step))
    return on_wide_states(step, [&](const AdamWStep& wide) { step_cpu(wide, scalars); });
  const std::vector<Range> ranges = read_ranges(step.no_decay_ranges_R2, step.master.numel());
  if (step.grad_scale_tensor.defined()) scalars.grad_scale *= *step.grad_scale_tensor.const_data_ptr<float>();
  const at::Tensor grad = widen(step.grad);
  const Buffers buffers{step.master.data_ptr<float>(), grad.const_data_ptr<float>(),
                        step.exp_avg.data_ptr<float>(), step.exp_avg_sq.data_ptr<float>()};
  at::parallel_for(0, step.master.numel(), cpu::kGrainElements, [&](int64_t begin, int64_t end) {
    for_each_piece(ranges, begin, end, scalars.decay, [&](int64_t first, int64_t last, float decay) {
      update_range(buffers, scalars, decay, first, last);
    });
  });
  if (step.model_param.defined()) step.model_param.copy_(step.master);
}

void step_plain(const AdamWStep& step, const AdamWScalars& scalars) {
  if (has_bf16_states(step))
    return on_wide_states(step, [&](const AdamWStep& wide) { step_plain(wide, scalars); });
  at::Tensor decay = at::full({step.master.numel()}, scalars.decay, step.master.options());
  if (step.no_decay_ranges_R2.defined()) {
    const at::Tensor host = step.no_decay_ranges_R2.cpu();
    for (const Range& r : read_ranges(host, step.master.numel()))
      decay.narrow(0, r.begin, r.end - r.begin).fill_(1.0);
  }
  at::Tensor grad = step.grad.reshape({-1}).to(at::kFloat).mul(scalars.grad_scale);
  if (step.grad_scale_tensor.defined()) grad = grad.mul(step.grad_scale_tensor);
  const at::Tensor master = step.master.view({-1}), m = step.exp_avg.view({-1}),
                   v = step.exp_avg_sq.view({-1});
  master.mul_(decay);
  m.lerp_(grad, 1 - step.beta1);
  v.mul_(step.beta2).addcmul_(grad, grad, 1 - step.beta2);
  const at::Tensor denominator = v.sqrt().div(scalars.bias_correction2_sqrt).add(step.eps);
  master.addcdiv_(m, denominator, scalars.negative_step_size);
  if (step.model_param.defined()) step.model_param.copy_(step.master);
}

constexpr int64_t kSumBlock =
    8192;  // elements: fixed, so that partial sums do not depend on the thread count

HEARTH_CPU_CLONES double sum_of_squares_block(const float* x, int64_t count) {
  double lanes[cpu::kLanes] = {};
  int64_t i = 0;
  for (; i + cpu::kLanes <= count; i += cpu::kLanes)
    for (int64_t j = 0; j < cpu::kLanes; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
  for (int64_t j = 0; i < count; ++i, ++j) lanes[j] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (int64_t j = 0; j < cpu::kLanes; ++j) sum += lanes[j];
  return sum;
}

at::Tensor sum_of_squares_cpu(const at::Tensor& x_in) {
  const at::Tensor x = widen(x_in);
  const int64_t count = x.numel(), blocks = (count + kSumBlock - 1) / kSumBlock;
  const float* data = x.const_data_ptr<float>();
  std::vector<double> partial(static_cast<size_t>(blocks));
  at::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      partial[static_cast<size_t>(b)] =
          sum_of_squares_block(data + b * kSumBlock, std::min(kSumBlock, count - b * kSumBlock));
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return at::full({1}, sum, x.options().dtype(at::kDouble));
}

#ifdef HEARTH_CUDA
void step_cuda(const AdamWStep& step, const AdamWScalars& scalars) {
  const CudaScope scope(step.master);
  const at::Tensor& ranges = step.no_decay_ranges_R2;
  adamw({.master = step.master.data_ptr(),
         .grad = step.grad.const_data_ptr(),
         .exp_avg = step.exp_avg.data_ptr(),
         .exp_avg_sq = step.exp_avg_sq.data_ptr(),
         .master_dtype = kernel_dtype(step.master),
         .grad_dtype = kernel_dtype(step.grad),
         .exp_avg_dtype = kernel_dtype(step.exp_avg),
         .exp_avg_sq_dtype = kernel_dtype(step.exp_avg_sq),
         .rounding_seed = step.rounding_seed,
         .model_param = step.model_param.defined() ? step.model_param.data_ptr() : nullptr,
         .grad_scale =
             step.grad_scale_tensor.defined() ? step.grad_scale_tensor.const_data_ptr<float>() : nullptr,
         .no_decay = ranges.defined() ? ranges.const_data_ptr<int64_t>() : nullptr,
         .num_no_decay = ranges.defined() ? ranges.size(0) : 0,
         .count = step.master.numel(),
         .scalars = scalars},
        scope.stream());
}

at::Tensor sum_of_squares_cuda(const at::Tensor& x) {
  const CudaScope scope(x);
  const auto options = x.options().dtype(at::kDouble);
  at::Tensor workspace = at::empty({sum_of_squares_workspace_doubles(x.numel())}, options);
  at::Tensor out = at::empty({1}, options);
  sum_of_squares({.x = x.const_data_ptr(),
                  .dtype = kernel_dtype(x),
                  .count = x.numel(),
                  .workspace = workspace.data_ptr<double>(),
                  .out = out.data_ptr<double>()},
                 scope.stream());
  return out;
}
#endif

void check_step(const AdamWStep& s) {
  constexpr const char* kOp = "adamw";
  HEARTH_REQUIRE(s.master.defined(), "adamw: master is undefined");
  const int64_t count = s.master.numel();
  check_state(kOp, "master", s.master, count, s.master);
  check_state(kOp, "grad", s.grad, count, s.master);
  check_state(kOp, "exp_avg", s.exp_avg, count, s.master);
  check_state(kOp, "exp_avg_sq", s.exp_avg_sq, count, s.master);
  if (s.grad_scale_tensor.defined())
    check_fp32_flat(kOp, "grad_scale_tensor", s.grad_scale_tensor, 1, s.master);
  HEARTH_REQUIRE(!s.model_param.defined() ||
                     (s.model_param.scalar_type() == at::kBFloat16 && s.model_param.is_contiguous() &&
                      s.model_param.numel() == count && s.model_param.device() == s.master.device()),
                 "adamw: model_param must be contiguous bf16 of {} elements, got {}", count,
                 describe(s.model_param));
  const at::Tensor& ranges = s.no_decay_ranges_R2;
  HEARTH_REQUIRE(
      !ranges.defined() || (ranges.scalar_type() == at::kLong && ranges.dim() == 2 && ranges.size(1) == 2 &&
                            ranges.is_contiguous() && ranges.device() == s.master.device()),
      "adamw: no_decay_ranges must be contiguous int64 [R, 2] beside the buffers, got {}", describe(ranges));
  HEARTH_REQUIRE(s.step >= 1, "adamw: step counts from 1, got {}", s.step);
  HEARTH_REQUIRE(s.beta1 >= 0 && s.beta1 < 1 && s.beta2 >= 0 && s.beta2 < 1 && s.eps >= 0,
                 "adamw: need 0 <= beta1, beta2 < 1 and eps >= 0, got {}, {}, {}", s.beta1, s.beta2, s.eps);
}

}  // namespace

void adamw_step_op(const AdamWStep& step, KernelPath path) {
  check_step(step);
  if (path == KernelPath::Plain) return step_plain(step, scalars_of(step));
#ifdef HEARTH_CUDA
  if (step.master.is_cuda()) return step_cuda(step, scalars_of(step));
#endif
  step_cpu(step, scalars_of(step));
}

at::Tensor sum_of_squares_op(const at::Tensor& x, KernelPath path) {
  HEARTH_REQUIRE(x.defined(), "sum_of_squares: x is undefined");
  check_state("sum_of_squares", "x", x, x.numel(), x);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && x.is_cuda()) return sum_of_squares_cuda(x);
#endif
  if (path == KernelPath::Plain) {
    const at::Tensor wide = x.to(at::kDouble);
    return wide.mul(wide).sum().view({1});
  }
  return sum_of_squares_cpu(x);
}

}  // namespace hearth::kernels
