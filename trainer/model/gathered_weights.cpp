#include "trainer/model/gathered_weights.h"

#include <fmt/core.h>

#include "base/error.h"

namespace hearth {

GatheredWeights::GatheredWeights(ParameterStore& parameters, Comm& ranks, std::string name)
    : parameters_(parameters), ranks_(ranks), name_(std::move(name)) {
  const BucketPlan& plan = parameters.plan();
  HEARTH_REQUIRE(plan.dp_size == ranks.size(), "parameters are cut for {} data-parallel ranks, there are {}",
                 plan.dp_size, ranks.size());
  parts_.resize(plan.buckets.size());
  pending_.resize(plan.buckets.size());
  int64_t total = 0;
  for (size_t i = 0; i < parts_.size(); ++i)
    if (parameters.weights_on_demand(static_cast<int64_t>(i)))
      total += range(static_cast<int64_t>(i)).count();
  const at::Tensor all_parts = total > 0 ? parameters.more_weights(total) : at::Tensor();
  for (size_t i = 0, at = 0; i < parts_.size(); ++i) {
    const auto bucket = static_cast<int64_t>(i);
    if (!parameters.weights_on_demand(bucket)) continue;
    const int64_t count = range(bucket).count();
    parts_[i] = all_parts.narrow(0, static_cast<int64_t>(at), count);
    at += static_cast<size_t>(count);
  }
  for (const Parameter& p : parameters.parameters()) {
    if (p.spec.name != "model.norm.weight") continue;  // of the head's unit, on the head's rank
    last_layer_unit_ = p.shard.unit - 1;
    head_unit_ = parameters.contains("lm_head.weight") ? p.shard.unit : 0;
  }
}

// Within the bucket.
ElementRange GatheredWeights::range(int64_t bucket) const {
  const BucketPlan& plan = parameters_.plan();
  const ElementRange shard = plan.shard(bucket, ranks_.rank());
  const int64_t begin = plan.buckets[static_cast<size_t>(bucket)].arena.begin;
  return {shard.begin - begin, shard.end - begin};
}

at::Tensor GatheredWeights::part(int64_t bucket) const {
  const at::Tensor& own = parts_[static_cast<size_t>(bucket)];
  if (own.defined()) return own;
  const ElementRange mine = range(bucket);
  return parameters_.weights(bucket).narrow(0, mine.begin, mine.count());
}

void GatheredWeights::keep_part(int64_t bucket) {
  const ElementRange mine = range(bucket);
  parts_[static_cast<size_t>(bucket)].copy_(parameters_.weights(bucket).narrow(0, mine.begin, mine.count()));
}

void GatheredWeights::gather(int64_t bucket) {
  WorkPtr& work = pending_[static_cast<size_t>(bucket)];
  if (work != nullptr) return;
  parameters_.restore_weights(bucket);
  const at::Tensor &whole = parameters_.weights(bucket), mine = part(bucket);
  work = ranks_.all_gather(mine.data_ptr(), whole.data_ptr(), mine.numel(), dtype_of(whole),
                           fmt::format("{}.bucket{}", name_, bucket));
}

void GatheredWeights::wait(int64_t bucket) {
  WorkPtr& work = pending_[static_cast<size_t>(bucket)];
  if (work != nullptr) work->wait();
  work.reset();
}

void GatheredWeights::finish() {
  for (size_t i = 0; i < pending_.size(); ++i) {
    wait(static_cast<int64_t>(i));
    parameters_.release_weights(static_cast<int64_t>(i));
  }
}

// The unit that this rank uses after `unit`; one that it does not have where it cannot know.
int64_t GatheredWeights::next_use(int64_t unit, UsePhase phase) const {
  if (phase == UsePhase::Loss) return last_layer_unit_;
  if (phase == UsePhase::Forward) return unit == last_layer_unit_ ? head_unit_ : unit + 1;
  return unit > 1 ? unit - 1 : -1;  // the table's gradient needs no table
}

void GatheredWeights::expect_use(int64_t unit) {
  if (!parameters_.has_unit(unit)) return;
  for (const int64_t bucket : parameters_.buckets_of_unit(unit))
    if (parameters_.weights_on_demand(bucket) && !parameters_.has_weights(bucket)) gather(bucket);
}

void GatheredWeights::before_use(int64_t unit, UsePhase phase) {
  if (!parameters_.has_unit(unit)) return;  // of a model whose other parameters are trained
  expect_use(unit);
  for (const int64_t bucket : parameters_.buckets_of_unit(unit)) wait(bucket);
  expect_use(next_use(unit, phase));
}

void GatheredWeights::after_use(int64_t unit, UsePhase) {
  if (!parameters_.has_unit(unit)) return;
  for (const int64_t bucket : parameters_.buckets_of_unit(unit)) {
    if (!parameters_.weights_on_demand(bucket)) continue;
    wait(bucket);  // one fetched ahead for a use that did not come must not arrive in memory given back
    parameters_.release_weights(bucket);
  }
}

}  // namespace hearth
