#include "trainer/optimizer/distributed_optimizer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/adamw_op.h"

namespace hearth {
namespace {
constexpr std::string_view kMaster = "optimizer.main_params.", kExpAvg = "optimizer.exp_avg.",
                           kExpAvgSq = "optimizer.exp_avg_sq.";

ElementRange intersection(ElementRange a, ElementRange b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}
ElementRange relative(ElementRange range, int64_t to) {
  return {range.begin - to, range.end - to};
}

// Part `index` of `count` parts of nearly one size.
ElementRange split(ElementRange range, int64_t index, int64_t count) {
  const auto at = [&](int64_t i) { return range.begin + range.count() * i / count; };
  return {at(index), at(index + 1)};
}

at::Tensor part(const at::Tensor& flat, ElementRange range) {
  return flat.narrow(0, range.begin, range.count());
}
}  // namespace

BucketMemory DistributedOptimizer::weight_memory(int64_t zero_stage) {
  return zero_stage >= 3 ? BucketMemory::OnDemand : BucketMemory::Resident;
}
BucketMemory DistributedOptimizer::grad_memory(int64_t zero_stage) {
  return zero_stage >= 2 ? BucketMemory::OnDemand : BucketMemory::Resident;
}

DistributedOptimizer::DistributedOptimizer(const OptimizerConfig& config, ParameterStore& parameters,
                                           const OptimizerComms& comms, int64_t zero_stage,
                                           const OptimizerDtypes& dtypes)
    : config_(config),
      parameters_(parameters),
      comms_(comms),
      comm_(comms.data_parallel),
      zero_stage_(zero_stage),
      separate_masters_(dtypes.masters && parameters.scalar_type() != at::kFloat),
      grads_dtype_(parameters.options().grads_dtype),
      gathered_(parameters, comm_, "param") {
  HEARTH_REQUIRE(zero_stage >= 0 && zero_stage <= 3, "zero_stage {} is not 0, 1, 2 or 3", zero_stage);
  const BucketPlan& plan = parameters.plan();
  const BucketMemory weights = parameters.options().weights;
  HEARTH_REQUIRE((weights == BucketMemory::Resident || weights == weight_memory(zero_stage)) &&
                     parameters.options().grads == grad_memory(zero_stage),
                 "the parameter store was not made for zero_stage {}", zero_stage);
  const auto options = at::TensorOptions(parameters.device()).dtype(at::kFloat);
  const int64_t grad_bytes = size_bytes(grads_dtype_);
  buckets_.resize(plan.buckets.size());
  has_sum_.resize(parameters.parameters().size());
  for (size_t i = 0; i < buckets_.size(); ++i) {
    BucketState& bucket = buckets_[i];
    const ElementRange arena = plan.buckets[i].arena;
    bucket.index = static_cast<int64_t>(i);
    const ElementRange shard = relative(plan.shard(bucket.index, comm_.rank()), arena.begin);
    bucket.owned = zero_stage >= 1 ? shard : ElementRange{0, arena.count()};
    bucket.share =
        comms.replicas == nullptr ? shard : split(shard, comms.replicas->rank(), comms.replicas->size());
    const int64_t count = bucket.owned.count();
    const auto bytes_of = [](at::ScalarType type) { return static_cast<int64_t>(c10::elementSize(type)); };
    parameters.memory().allocating(
        MemoryPart::Optimizer,
        count * ((separate_masters_ ? 4 : 0) + bytes_of(dtypes.exp_avg) + bytes_of(dtypes.exp_avg_sq)));
    if (shards_gradients()) parameters.memory().allocating(MemoryPart::Gradients, count * grad_bytes);
    bucket.master = separate_masters_ ? owned_weights(bucket).to(at::kFloat) : owned_weights(bucket);
    bucket.exp_avg = at::zeros({bucket.owned.count()}, options.dtype(dtypes.exp_avg));
    bucket.exp_avg_sq = at::zeros({bucket.owned.count()}, options.dtype(dtypes.exp_avg_sq));
    if (shards_gradients())
      bucket.grad_shard = at::empty({bucket.owned.count()}, options.dtype(torch_dtype(grads_dtype_)));
    plan_ranges(bucket);
    plan_clearing(bucket);
  }
}

ElementRange DistributedOptimizer::in_bucket(int64_t parameter) const {
  const ParameterPlace& place = parameters_.plan().places[static_cast<size_t>(parameter)];
  return {place.offset, place.offset + place.count};
}

DistributedOptimizer::BucketState& DistributedOptimizer::bucket_of(int64_t parameter) {
  return buckets_[static_cast<size_t>(parameters_.plan().places[static_cast<size_t>(parameter)].bucket)];
}

bool DistributedOptimizer::is_matrix(int64_t parameter) const {
  return parameters_.parameters()[static_cast<size_t>(parameter)].spec.shape.size() >= 2;
}

Comm* DistributedOptimizer::comm_of(GradientSum sum) const {
  switch (sum) {
    case GradientSum::TensorParallel:
      return comms_.tensor_parallel;
    case GradientSum::KvReplicas:
      return comms_.kv_replicas;
    case GradientSum::TiedEmbedding:
      return comms_.tied_embedding;
    default:
      return nullptr;
  }
}

// Within the owned part: 1-D parameters, which do not decay; ranges that another group adds up; ranges whose
// gradients this rank counts. Neighbours merge, so that the norms of all layers are one collective.
void DistributedOptimizer::plan_ranges(BucketState& bucket) {
  std::vector<int64_t> no_decay;
  for (const int64_t index : parameters_.plan().buckets[static_cast<size_t>(bucket.index)].parameters) {
    const Parameter& p = parameters_.parameters()[static_cast<size_t>(index)];
    const ElementRange mine = relative(intersection(in_bucket(index), bucket.owned), bucket.owned.begin);
    if (mine.empty()) continue;
    if (p.spec.shape.size() < 2) {
      if (!no_decay.empty() && no_decay.back() == mine.begin) {
        no_decay.back() = mine.end;
      } else {
        no_decay.insert(no_decay.end(), {mine.begin, mine.end});
      }
    }
    if (Comm* comm = comm_of(p.shard.sum); comm != nullptr && comm->size() > 1) {
      const auto number = static_cast<size_t>(bucket.index);
      // Groups start at aligned offsets; the zeros between two of them may be added too.
      const bool joins = !summations_.empty() && summations_.back().bucket == number &&
                         summations_.back().comm == comm &&
                         mine.begin - summations_.back().range.end < kBucketAlignment;
      if (joins) {
        summations_.back().range.end = mine.end;
      } else {
        summations_.push_back({comm, number, mine});
      }
    }
    const ElementRange counts = relative(intersection(in_bucket(index), bucket.share), bucket.owned.begin);
    if (!p.shard.counts || counts.empty()) continue;
    if (!bucket.counted.empty() && counts.begin - bucket.counted.back().end < kBucketAlignment) {
      bucket.counted.back().end = counts.end;
    } else {
      bucket.counted.push_back(counts);
    }
  }
  bucket.no_decay_ranges = at::tensor(no_decay, at::kLong).view({-1, 2}).to(parameters_.device());
}

// Vectors, which are only added to, and padding, which travels and is measured with what lies beside it.
void DistributedOptimizer::plan_clearing(BucketState& bucket) {
  const Bucket& planned = parameters_.plan().buckets[static_cast<size_t>(bucket.index)];
  int64_t end = 0;  // of the last matrix
  const auto clear_up_to = [&](int64_t begin) {
    if (begin > end) bucket.cleared.push_back({end, begin});
  };
  for (const int64_t index : planned.parameters) {
    if (!is_matrix(index)) continue;
    clear_up_to(in_bucket(index).begin);
    end = in_bucket(index).end;
  }
  clear_up_to(planned.arena.count());
}

void DistributedOptimizer::begin_sums(const BucketState& bucket) {
  for (const ElementRange range : bucket.cleared) part(parameters_.grads(bucket.index), range).zero_();
  for (const int64_t index : parameters_.plan().buckets[static_cast<size_t>(bucket.index)].parameters)
    has_sum_[static_cast<size_t>(index)] = false;
}

void DistributedOptimizer::complete_sums(const BucketState& bucket) {
  for (const int64_t index : parameters_.plan().buckets[static_cast<size_t>(bucket.index)].parameters)
    if (is_matrix(index) && !has_sum_[static_cast<size_t>(index)])
      part(parameters_.grads(bucket.index), in_bucket(index)).zero_();
}

at::Tensor DistributedOptimizer::owned_grads(const BucketState& bucket) const {
  return shards_gradients() ? bucket.grad_shard : part(parameters_.grads(bucket.index), bucket.owned);
}
at::Tensor DistributedOptimizer::owned_weights(const BucketState& bucket) const {
  return zero_stage_ == 0 ? parameters_.weights(bucket.index) : gathered_.part(bucket.index);
}

void DistributedOptimizer::begin_step(const std::vector<int64_t>& uses, int64_t micro_batches) {
  for (auto& bucket : buckets_) {
    if (!shards_gradients()) begin_sums(bucket);
    bucket.has_sum = false;
    bucket.squares.clear();
    bucket.per_cycle = 0;
  }
  for (size_t i = 0; i < uses.size(); ++i) bucket_of(static_cast<int64_t>(i)).per_cycle += uses[i];
  for (auto& bucket : buckets_) {
    if (!shards_gradients()) bucket.per_cycle *= micro_batches;
    bucket.pending = bucket.per_cycle;
  }
}

kernels::GradientWrite DistributedOptimizer::before_gradient(const std::vector<int64_t>& parameters) {
  if (shards_gradients())
    for (const int64_t index : parameters) {
      BucketState& bucket = bucket_of(index);
      if (bucket.reduction != nullptr) {
        retire(bucket);
        in_flight_.erase(std::find(in_flight_.begin(), in_flight_.end(), static_cast<size_t>(bucket.index)));
      }
      if (parameters_.has_grads(bucket.index)) continue;
      parameters_.restore_grads(bucket.index);
      begin_sums(bucket);
    }
  std::vector<int64_t> stale;
  int64_t matrices = 0;
  for (const int64_t index : parameters) {
    if (!is_matrix(index)) continue;
    ++matrices;
    if (has_sum_[static_cast<size_t>(index)]) continue;
    stale.push_back(index);
    has_sum_[static_cast<size_t>(index)] = true;
  }
  if (static_cast<int64_t>(stale.size()) == matrices && matrices > 0)
    return kernels::GradientWrite::Overwrite;
  // Matrices that get their contributions together, but lie in buckets of which one went out earlier.
  for (const int64_t index : stale) part(parameters_.grads(bucket_of(index).index), in_bucket(index)).zero_();
  return kernels::GradientWrite::Add;
}

void DistributedOptimizer::gradient_ready(const std::vector<int64_t>& parameters) {
  for (const int64_t index : parameters) {
    BucketState& bucket = bucket_of(index);
    if (bucket.per_cycle == 0) continue;  // nobody asked: gradients outside a step
    HEARTH_ASSERT(bucket.pending > 0);
    if (--bucket.pending == 0) reduce(bucket);
  }
}

void DistributedOptimizer::reduce(BucketState& bucket) {
  const std::string site = fmt::format("grad.bucket{}", bucket.index);
  const int64_t share = bucket.owned.count();
  if (!shards_gradients()) {
    complete_sums(bucket);
    const at::Tensor& grads = parameters_.grads(bucket.index);
    bucket.reduction =
        zero_stage_ == 0
            ? comm_.all_reduce(grads.data_ptr(), grads.numel(), grads_dtype_, ReduceOp::Sum, site)
            : comm_.reduce_scatter(grads.data_ptr(), part(grads, bucket.owned).data_ptr(), share,
                                   grads_dtype_, site);
    in_flight_.push_back(static_cast<size_t>(bucket.index));
    return;
  }
  bucket.pending = bucket.per_cycle;
  // Contributions of several micro-batches may have gone out together with an earlier one; all ranks see the
  // same.
  if (!parameters_.has_grads(bucket.index) || bucket.reduction != nullptr) return;
  complete_sums(bucket);
  parameters_.memory().allocating(MemoryPart::Gradients, share * size_bytes(grads_dtype_));
  bucket.incoming = at::empty({share}, bucket.grad_shard.options());
  bucket.reduction = comm_.reduce_scatter(parameters_.grads(bucket.index).data_ptr(),
                                          bucket.incoming.data_ptr(), share, grads_dtype_, site);
  in_flight_.push_back(static_cast<size_t>(bucket.index));
  if (static_cast<int64_t>(in_flight_.size()) > kReductionsInFlight) {
    retire(buckets_[in_flight_.front()]);
    in_flight_.pop_front();
  }
}

// Stage 2, 3: the sum has arrived; the whole bucket is not needed any more.
void DistributedOptimizer::retire(BucketState& bucket) {
  bucket.reduction->wait();
  bucket.reduction.reset();
  if (bucket.has_sum) {
    bucket.grad_shard.add_(bucket.incoming);
  } else {
    bucket.grad_shard.copy_(bucket.incoming);
  }
  bucket.has_sum = true;
  bucket.incoming.reset();
  parameters_.memory().released(MemoryPart::Gradients, bucket.owned.count() * size_bytes(grads_dtype_));
  parameters_.release_grads(bucket.index);
}

void DistributedOptimizer::finish_gradients() {
  // Where nothing is added any more, what has arrived is measured while the last sums are under way.
  const bool measures = comms_.replicas == nullptr && summations_.empty();
  const auto arrived = [&](BucketState& bucket) {
    if (measures) bucket.squares = sum_of_squares(bucket);
  };
  for (auto& bucket : buckets_) {
    bucket.per_cycle = 0;
    if (bucket.reduction != nullptr) continue;
    HEARTH_ASSERT(shards_gradients() && !parameters_.has_grads(bucket.index));
    if (!bucket.has_sum) bucket.grad_shard.zero_();
    arrived(bucket);
  }
  for (const size_t index : in_flight_) {  // in the order in which they arrive
    BucketState& bucket = buckets_[index];
    if (shards_gradients()) {
      retire(bucket);
    } else {
      HEARTH_ASSERT(bucket.pending == 0);
      bucket.reduction->wait();
      bucket.reduction.reset();
    }
    arrived(bucket);
  }
  in_flight_.clear();
  std::vector<WorkPtr> sums;
  if (comms_.replicas != nullptr)
    for (const auto& bucket : buckets_) {
      const at::Tensor grads = owned_grads(bucket);
      sums.push_back(comms_.replicas->all_reduce(grads.data_ptr(), grads.numel(), grads_dtype_, ReduceOp::Sum,
                                                 fmt::format("grad.replicas.bucket{}", bucket.index)));
    }
  for (auto& sum : sums) sum->wait();
  sums.clear();
  for (const Summation& s : summations_) {
    const at::Tensor grads = part(owned_grads(buckets_[s.bucket]), s.range);
    sums.push_back(s.comm->all_reduce(grads.data_ptr(), grads.numel(), grads_dtype_, ReduceOp::Sum,
                                      fmt::format("grad.sum.bucket{}", s.bucket)));
  }
  for (auto& sum : sums) sum->wait();
}

// One number for each range that counts, fp64.
std::vector<at::Tensor> DistributedOptimizer::sum_of_squares(const BucketState& bucket) const {
  std::vector<at::Tensor> sums;
  for (const ElementRange range : bucket.counted)
    sums.push_back(kernels::sum_of_squares_op(part(owned_grads(bucket), range)).view({1}));
  return sums;
}

at::Tensor DistributedOptimizer::local_sum_of_squares() const {
  std::vector<at::Tensor> sums{at::zeros({1}, at::TensorOptions(parameters_.device()).dtype(at::kDouble))};
  for (const auto& bucket : buckets_) {
    const auto squares = bucket.squares.empty() ? sum_of_squares(bucket) : bucket.squares;
    sums.insert(sums.end(), squares.begin(), squares.end());
  }
  return at::stack(sums).sum(0);
}

void DistributedOptimizer::step(double lr, double grad_scale) {
  ++num_updates_;
  if (zero_stage_ == 3) finish_parameters();  // what was fetched ahead and not used is of before the update
  // Forward order: while later layers are updated, the first ones are gathered already. Of buckets that come
  // and go that is the first alone; the next is fetched when it is used.
  bool is_first = true;  // none of those was met yet
  for (auto bucket = buckets_.rbegin(); bucket != buckets_.rend(); ++bucket) {
    update(*bucket, lr, grad_scale);
    const bool on_demand = parameters_.weights_on_demand(bucket->index);
    if (zero_stage_ > 0 && (is_first || !on_demand)) gathered_.gather(bucket->index);
    is_first = is_first && !on_demand;
  }
}

void DistributedOptimizer::update(BucketState& bucket, double lr, double grad_scale) {
  kernels::AdamWStep update;
  update.master = bucket.master;
  update.grad = owned_grads(bucket);
  update.exp_avg = bucket.exp_avg;
  update.exp_avg_sq = bucket.exp_avg_sq;
  if (separate_masters_) update.model_param = owned_weights(bucket);
  update.no_decay_ranges_R2 = bucket.no_decay_ranges;
  update.lr = lr;
  update.beta1 = config_.adam_beta1;
  update.beta2 = config_.adam_beta2;
  update.eps = config_.adam_eps;
  update.weight_decay = config_.weight_decay;
  update.step = num_updates_;
  update.rounding_seed = CounterRng(static_cast<uint64_t>(num_updates_), static_cast<uint64_t>(comm_.rank()))
                             .bits(static_cast<uint64_t>(bucket.index));
  update.grad_scale = grad_scale;
  kernels::adamw_step_op(update);
}

void DistributedOptimizer::for_each_part(
    ElementRange BucketState::*range,
    const std::function<void(int64_t, ElementRange, const BucketState&, int64_t)>& visit) const {
  for (size_t i = 0; i < parameters_.parameters().size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    const BucketState& bucket = buckets_[static_cast<size_t>(parameters_.plan().places[i].bucket)];
    ElementRange whole = in_bucket(index);
    whole.end = whole.begin + parameters_.parameters()[i].shard.numel();  // padding rows stay in memory
    const ElementRange mine = intersection(whole, bucket.*range);
    if (!mine.empty()) visit(index, relative(mine, whole.begin), bucket, mine.begin - bucket.owned.begin);
  }
}

// Elements `in_box` of a parameter, which begin at `at` in a buffer of this rank's elements.
StateSlice DistributedOptimizer::slice(std::string_view prefix, int64_t parameter, ElementRange in_box,
                                       const at::Tensor& owned, int64_t at) const {
  const Parameter& p = parameters_.parameters()[static_cast<size_t>(parameter)];
  return {std::string(prefix) + p.spec.name,  p.spec.shape, p.shard.box, in_box.begin, in_box.end,
          owned.narrow(0, at, in_box.count())};
}

std::vector<StateSlice> DistributedOptimizer::gradient_slices() const {
  std::vector<StateSlice> slices;
  for_each_part(&BucketState::share,
                [&](int64_t i, ElementRange in_box, const BucketState& bucket, int64_t at) {
                  if (parameters_.parameters()[static_cast<size_t>(i)].shard.counts)
                    slices.push_back(slice("", i, in_box, owned_grads(bucket), at));
                });
  return slices;
}

std::vector<StateSlice> DistributedOptimizer::state_slices() {
  finish_parameters();
  std::vector<StateSlice> slices;
  for_each_part(&BucketState::share,
                [&](int64_t i, ElementRange in_box, const BucketState& bucket, int64_t at) {
                  if (!parameters_.parameters()[static_cast<size_t>(i)].shard.counts) return;
                  slices.push_back(slice("", i, in_box, owned_weights(bucket), at));
                  if (separate_masters_) slices.push_back(slice(kMaster, i, in_box, bucket.master, at));
                  slices.push_back(slice(kExpAvg, i, in_box, bucket.exp_avg, at));
                  slices.push_back(slice(kExpAvgSq, i, in_box, bucket.exp_avg_sq, at));
                });
  return slices;
}

void DistributedOptimizer::load_into(const std::string& prefix, const TensorSource& source,
                                     at::Tensor BucketState::*buffer) {
  for_each_part(&BucketState::owned,
                [&](int64_t i, ElementRange in_box, const BucketState& bucket, int64_t at) {
                  at::Tensor host = at::empty({in_box.count()}, at::kFloat);
                  parameters_.read(source, prefix, i, in_box.begin, in_box.end, host.data_ptr<float>());
                  at::Tensor target = (bucket.*buffer).narrow(0, at, in_box.count());
                  target.copy_(host);
                });
}

void DistributedOptimizer::load_masters(const ParameterStore::Fill& values) {
  finish_parameters();  // nothing may still arrive over what is set
  parameters_.fill(values, [&](int64_t index) {
    if (parameters_.weights_on_demand(index)) gathered_.keep_part(index);
  });
  if (!separate_masters_) return;  // the parameters themselves are the masters
  for_each_part(&BucketState::owned,
                [&](int64_t i, ElementRange in_box, const BucketState& bucket, int64_t at) {
                  at::Tensor host = at::empty({in_box.count()}, at::kFloat);
                  values(i, in_box.begin, in_box.end, host.data_ptr<float>());
                  at::Tensor target = bucket.master.narrow(0, at, in_box.count());
                  target.copy_(host);
                });
}

void DistributedOptimizer::load(const TensorSource& source) {
  parameters_.require(source);
  // A checkpoint written in fp32 has no separate masters: its parameters are the masters.
  const std::string first = std::string(kMaster) + parameters_.parameters()[0].spec.name;
  const std::string masters = source.contains(first) ? std::string(kMaster) : "";
  load_masters([&](int64_t i, int64_t begin, int64_t end, float* out) {
    parameters_.read(source, "", i, begin, end, out);
  });
  if (separate_masters_) load_into(masters, source, &BucketState::master);
  load_into(std::string(kExpAvg), source, &BucketState::exp_avg);
  load_into(std::string(kExpAvgSq), source, &BucketState::exp_avg_sq);
}

bool DistributedOptimizer::masters_are_finite() const {
  for (const auto& bucket : buckets_)
    if (!std::isfinite(kernels::sum_of_squares_op(bucket.master).item<double>())) return false;
  return true;
}

}  // namespace hearth
