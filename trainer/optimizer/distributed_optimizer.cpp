#include "trainer/optimizer/distributed_optimizer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/adamw_op.h"

namespace hearth {
namespace {
constexpr std::string_view kMaster = "optimizer.main_params.", kExpAvg = "optimizer.exp_avg.",
                           kExpAvgSq = "optimizer.exp_avg_sq.";

// The elements of `parameter` that lie in `range`, relative to the parameter's start.
ElementRange part_in(ElementRange parameter, ElementRange range) {
  return {std::max(parameter.begin, range.begin) - parameter.begin, std::min(parameter.end, range.end) - parameter.begin};
}
}  // namespace

DistributedOptimizer::DistributedOptimizer(const OptimizerConfig& config, ParameterStore& parameters,
                                           Comm& data_parallel, int64_t zero_stage)
    : config_(config),
      parameters_(parameters),
      comm_(data_parallel),
      zero_stage_(zero_stage),
      separate_masters_(parameters.arena().scalar_type() != at::kFloat) {
  HEARTH_REQUIRE(zero_stage == 0 || zero_stage == 1, "zero_stage {} is not available", zero_stage);
  const BucketPlan& plan = parameters.plan();
  HEARTH_REQUIRE(plan.dp_size == comm_.size(), "parameters are cut for {} data-parallel ranks, there are {}",
                 plan.dp_size, comm_.size());
  const auto options = parameters.arena().options().dtype(at::kFloat);
  for (size_t i = 0; i < plan.buckets.size(); ++i) {
    BucketState bucket;
    bucket.whole = plan.buckets[i].arena;
    bucket.owned = zero_stage == 1 ? plan.shard(static_cast<int64_t>(i), comm_.rank()) : bucket.whole;
    const at::Tensor weights = parameters.arena().narrow(0, bucket.owned.begin, bucket.owned.count());
    bucket.master = separate_masters_ ? weights.to(at::kFloat) : weights;
    bucket.exp_avg = at::zeros({bucket.owned.count()}, options);
    bucket.exp_avg_sq = at::zeros({bucket.owned.count()}, options);
    bucket.no_decay_ranges = no_decay_ranges(bucket.owned);
    buckets_.push_back(std::move(bucket));
  }
}

// Norm weights and biases: the 1-D parameters. Neighbours merge.
at::Tensor DistributedOptimizer::no_decay_ranges(ElementRange owned) const {
  const BucketPlan& plan = parameters_.plan();
  std::vector<ElementRange> ranges;
  for (size_t i = 0; i < parameters_.parameters().size(); ++i) {
    if (parameters_.parameters()[i].spec.shape.size() > 1) continue;
    const ElementRange part = part_in(plan.parameter(static_cast<int64_t>(i)), owned);
    if (part.empty()) continue;
    const int64_t begin = plan.parameter(static_cast<int64_t>(i)).begin + part.begin - owned.begin;
    ranges.push_back({begin, begin + part.count()});
  }
  std::sort(ranges.begin(), ranges.end(), [](auto a, auto b) { return a.begin < b.begin; });
  std::vector<int64_t> flat;
  for (const auto range : ranges) flat.insert(flat.end(), {range.begin, range.end});
  return at::tensor(flat, at::kLong).view({-1, 2}).to(parameters_.arena().device());
}

void DistributedOptimizer::begin_step(const std::vector<int64_t>& uses) {
  parameters_.grad_arena().zero_();
  left_ = uses;
  last_micro_batch_ = false;
  for (auto& bucket : buckets_) bucket.pending = 0;
  for (size_t i = 0; i < uses.size(); ++i)
    buckets_[static_cast<size_t>(parameters_.plan().places[i].bucket)].pending += uses[i];
}

void DistributedOptimizer::gradient_ready(int64_t parameter_index) {
  if (!last_micro_batch_) return;
  HEARTH_ASSERT(--left_[static_cast<size_t>(parameter_index)] >= 0);
  const auto index = static_cast<size_t>(parameters_.plan().places[static_cast<size_t>(parameter_index)].bucket);
  if (--buckets_[index].pending == 0) reduce(buckets_[index], index);
}

void DistributedOptimizer::reduce(BucketState& bucket, size_t index) {
  float* grads = parameters_.grad_arena().data_ptr<float>() + bucket.whole.begin;
  const std::string site = fmt::format("grad.bucket{}", index);
  if (zero_stage_ == 0) {
    bucket.reduction = comm_.all_reduce(grads, bucket.whole.count(), DType::F32, ReduceOp::Sum, site);
  } else {
    const int64_t share = bucket.owned.count();
    bucket.reduction = comm_.reduce_scatter(grads, grads + comm_.rank() * share, share, DType::F32, site);
  }
}

void DistributedOptimizer::finish_gradients() {
  for (auto& bucket : buckets_) {
    HEARTH_ASSERT(bucket.pending == 0 && bucket.reduction != nullptr);
    bucket.reduction->wait();
    bucket.reduction.reset();
  }
}

at::Tensor DistributedOptimizer::local_sum_of_squares() const {
  std::vector<at::Tensor> sums;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    // The rank's share in every stage: in stage 0 all ranks hold all sums, and each must count once.
    const ElementRange share = parameters_.plan().shard(static_cast<int64_t>(i), comm_.rank());
    sums.push_back(kernels::sum_of_squares_op(parameters_.grad_arena().narrow(0, share.begin, share.count())));
  }
  return at::stack(sums).sum(0);
}

void DistributedOptimizer::step(double lr, double grad_scale) {
  ++num_updates_;
  for (auto& bucket : buckets_) {
    kernels::AdamWStep update;
    update.master = bucket.master;
    update.grad = parameters_.grad_arena().narrow(0, bucket.owned.begin, bucket.owned.count());
    update.exp_avg = bucket.exp_avg;
    update.exp_avg_sq = bucket.exp_avg_sq;
    if (separate_masters_)
      update.model_param = parameters_.arena().narrow(0, bucket.owned.begin, bucket.owned.count());
    update.no_decay_ranges_R2 = bucket.no_decay_ranges;
    update.lr = lr;
    update.beta1 = config_.adam_beta1;
    update.beta2 = config_.adam_beta2;
    update.eps = config_.adam_eps;
    update.weight_decay = config_.weight_decay;
    update.step = num_updates_;
    update.grad_scale = grad_scale;
    kernels::adamw_step_op(update);
  }
  gather_parameters();
}

void DistributedOptimizer::gather_parameters() {
  if (zero_stage_ == 0) return;
  auto* arena = static_cast<char*>(parameters_.arena().data_ptr());
  const DType dtype = dtype_of(parameters_.arena());
  std::vector<WorkPtr> gathers;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const BucketState& bucket = buckets_[i];
    gathers.push_back(comm_.all_gather(arena + bucket.owned.begin * size_bytes(dtype),
                                       arena + bucket.whole.begin * size_bytes(dtype), bucket.owned.count(), dtype,
                                       fmt::format("param.bucket{}", i)));
  }
  for (auto& gather : gathers) gather->wait();
}

void DistributedOptimizer::for_each_part(
    const std::function<ElementRange(const BucketState&, int64_t)>& range_of,
    const std::function<void(int64_t, ElementRange, const BucketState&, int64_t)>& visit) const {
  const BucketPlan& plan = parameters_.plan();
  for (size_t i = 0; i < parameters_.parameters().size(); ++i) {
    const BucketState& bucket = buckets_[static_cast<size_t>(plan.places[i].bucket)];
    ElementRange part = part_in(plan.parameter(static_cast<int64_t>(i)), range_of(bucket, plan.places[i].bucket));
    part.end = std::min(part.end, parameters_.parameters()[i].spec.numel());  // padding rows stay in the arena
    if (part.begin < part.end)
      visit(static_cast<int64_t>(i), part, bucket, plan.parameter(static_cast<int64_t>(i)).begin + part.begin - bucket.owned.begin);
  }
}

std::vector<StateSlice> DistributedOptimizer::state_slices() const {
  std::vector<StateSlice> slices;
  const auto add = [&](std::string_view prefix, const Parameter& p, ElementRange part, const at::Tensor& values) {
    slices.push_back({std::string(prefix) + p.spec.name, p.spec.shape, part.begin, part.end, values});
  };
  const auto rank_share = [&](const BucketState&, int64_t index) { return parameters_.plan().shard(index, comm_.rank()); };
  for_each_part(rank_share, [&](int64_t i, ElementRange part, const BucketState& bucket, int64_t at) {
    const Parameter& p = parameters_.parameters()[static_cast<size_t>(i)];
    add("", p, part, parameters_.arena().narrow(0, p.offset + part.begin, part.count()));
    if (separate_masters_) add(kMaster, p, part, bucket.master.narrow(0, at, part.count()));
    add(kExpAvg, p, part, bucket.exp_avg.narrow(0, at, part.count()));
    add(kExpAvgSq, p, part, bucket.exp_avg_sq.narrow(0, at, part.count()));
  });
  return slices;
}

void DistributedOptimizer::load_into(const std::string& prefix, const TensorSource& source,
                                     at::Tensor BucketState::*buffer) {
  const auto owned = [](const BucketState& bucket, int64_t) { return bucket.owned; };
  for_each_part(owned, [&](int64_t i, ElementRange part, const BucketState& bucket, int64_t at) {
    const std::string name = prefix + parameters_.parameters()[static_cast<size_t>(i)].spec.name;
    at::Tensor host = at::empty({part.count()}, at::kFloat);
    source.read_elements(name, part.begin, part.end, DType::F32, host.data_ptr<float>());
    at::Tensor target = (bucket.*buffer).narrow(0, at, part.count());
    target.copy_(host);
  });
}

void DistributedOptimizer::load(const TensorSource& source) {
  parameters_.load(source);
  // A checkpoint written in fp32 has no separate masters: its parameters are the masters.
  const std::string first = std::string(kMaster) + parameters_.parameters()[0].spec.name;
  if (separate_masters_) load_into(source.contains(first) ? std::string(kMaster) : "", source, &BucketState::master);
  load_into(std::string(kExpAvg), source, &BucketState::exp_avg);
  load_into(std::string(kExpAvgSq), source, &BucketState::exp_avg_sq);
}

void DistributedOptimizer::load_masters(const std::function<void(int64_t, int64_t, int64_t, float*)>& values) {
  if (!separate_masters_) return;  // the parameters themselves are the masters
  const auto owned = [](const BucketState& bucket, int64_t) { return bucket.owned; };
  for_each_part(owned, [&](int64_t i, ElementRange part, const BucketState& bucket, int64_t at) {
    at::Tensor host = at::empty({part.count()}, at::kFloat);
    values(i, part.begin, part.end, host.data_ptr<float>());
    at::Tensor target = bucket.master.narrow(0, at, part.count());
    target.copy_(host);
  });
}

bool DistributedOptimizer::masters_are_finite() const {
  for (const auto& bucket : buckets_)
    if (!std::isfinite(kernels::sum_of_squares_op(bucket.master).item<double>())) return false;
  return true;
}

}  // namespace hearth
