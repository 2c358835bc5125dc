#include "trainer/model/parameter_store.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace hearth {
namespace {

// Parameters that one GEMM reads together must be stored without gaps: true when `next` continues the group
// of `name`.
bool same_group(const std::string& name, const std::string& next) {
  // q and v meet where adapters are on them alone.
  constexpr std::pair<std::string_view, std::string_view> kNeighbours[] = {
      {"q_proj.", "k_proj."}, {"k_proj.", "v_proj."}, {"q_proj.", "v_proj."}, {"gate_proj.", "up_proj."}};
  for (const auto& [first, second] : kNeighbours) {
    const auto at = name.find(first);
    if (at != std::string::npos &&
        next == name.substr(0, at) + std::string(second) + name.substr(at + first.size()))
      return true;
  }
  return false;
}

bool is_vector(const ParameterShard& shard) {
  return shard.spec.shape.size() < 2;
}

bool is_vocabulary_table(const std::string& name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

// What may share a bucket has one number: the layers' matrices (each layer for itself where they come and
// go), each vocabulary table, the vectors. From 0 on: those that come and go, where any do.
int64_t bucket_kind(const ParameterShard& shard, BucketMemory weights) {
  constexpr int64_t kVectors = -1, kLayers = -2, kTables = -3;
  if (is_vector(shard)) return kVectors;
  if (is_vocabulary_table(shard.spec.name))
    return weights == BucketMemory::LayersOnDemand ? kTables - shard.unit : shard.unit;
  return weights == BucketMemory::Resident ? kLayers : shard.unit;
}

// Groups in bucket order: what plan_buckets takes. Vectors come first, so that their buckets are the last
// ones, when the last norm's gradient is there anyway.
struct Groups {
  std::vector<BucketGroup> groups;
  std::vector<size_t> order;  // StoragePlan::order
};
Groups storage_groups(const std::vector<ParameterShard>& shards, BucketMemory weights) {
  Groups out;
  for (const bool vectors : {true, false})
    for (size_t i = 0; i < shards.size(); ++i) {
      if (is_vector(shards[i]) != vectors) continue;
      const bool joins = !out.order.empty() && out.order.back() + 1 == i &&
                         same_group(shards[i - 1].spec.name, shards[i].spec.name);
      if (!joins) out.groups.push_back({.parameters = {}, .kind = bucket_kind(shards[i], weights)});
      out.groups.back().parameters.push_back({shards[i].spec.name, shards[i].storage_elements()});
      out.order.push_back(i);
    }
  return out;
}

// The storage keeps its size while its memory is away, so that views can be made at any time.
void release_memory(const at::Tensor& flat) {
  flat.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(at::DataPtr(nullptr, flat.device()));
}
void restore_memory(const at::Tensor& flat, at::DataPtr memory) {
  flat.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(memory));
}
bool has_memory(const at::Tensor& flat) {
  return flat.storage().data() != nullptr;
}
auto bytes_of(const at::Tensor& flat) {
  return static_cast<int64_t>(flat.storage().nbytes());
}

}  // namespace

at::ScalarType torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return at::kDouble;
    case DType::F32:
      return at::kFloat;
    case DType::F16:
      return at::kHalf;
    case DType::BF16:
      return at::kBFloat16;
    default:
      fail(ErrorKind::Usage, "a model cannot compute in {}", config_name(dtype));
  }
}

ParameterStore::ParameterStore(const ModelConfig& config, DType dtype, at::Device device,
                               WithGradients gradients, int64_t data_parallel_size, int64_t bucket_elements)
    : ParameterStore(parameter_shards(config, ModelPartition::whole(config)),
                     {.dtype = dtype,
                      .device = device,
                      .gradients = gradients,
                      .data_parallel_size = data_parallel_size,
                      .bucket_elements = bucket_elements}) {}

StoragePlan storage_plan(const std::vector<ParameterShard>& shards, const StoreOptions& options) {
  Groups groups = storage_groups(shards, options.weights);
  return {plan_buckets(groups.groups, options.bucket_elements, options.data_parallel_size),
          std::move(groups.order)};
}

bool is_on_demand(const Bucket& bucket, const StoreOptions& options) {
  return options.weights != BucketMemory::Resident && bucket.kind >= 0;
}

ParameterStore::ParameterStore(const std::vector<ParameterShard>& shards, const StoreOptions& options)
    : options_(options),
      own_memory_(options.memory == nullptr ? std::make_unique<MemoryLedger>(options.device) : nullptr),
      memory_(options.memory == nullptr ? own_memory_.get() : options.memory),
      gather_memory_(options.gathered_by, options.device) {
  StoragePlan storage = storage_plan(shards, options);
  plan_ = std::move(storage.plan);
  allocate();
  for (size_t i = 0; i < storage.order.size(); ++i) {
    Parameter p;
    p.shard = shards[storage.order[i]];
    p.spec = p.shard.spec;
    const ParameterPlace& place = plan_.places[i];
    p.offset = plan_.parameter(static_cast<int64_t>(i)).begin;
    p.storage = place.count;
    auto padded_shape = p.shard.shape();
    padded_shape[0] = p.shard.storage_rows;
    const auto view = [&](const at::Tensor& bucket, const std::vector<int64_t>& shape, int64_t elements) {
      return bucket.narrow(0, place.offset, elements).view(shape);
    };
    const auto bucket = static_cast<size_t>(place.bucket);
    p.weight = view(weights_[bucket], p.shard.shape(), p.shard.numel());
    p.padded_weight = view(weights_[bucket], padded_shape, place.count);
    if (options.gradients == WithGradients::Yes) {
      p.main_grad = view(grads_[bucket], p.shard.shape(), p.shard.numel());
      p.padded_main_grad = view(grads_[bucket], padded_shape, place.count);
    }
    auto& of_unit = unit_buckets_[p.shard.unit];
    if (std::find(of_unit.begin(), of_unit.end(), place.bucket) == of_unit.end())
      of_unit.push_back(place.bucket);
    by_name_[p.spec.name] = static_cast<int64_t>(i);
    parameters_.push_back(std::move(p));
  }
}

// Resident buckets are parts of one allocation; the others own theirs, which starts absent.
void ParameterStore::allocate() {
  const auto weight_options = at::TensorOptions(options_.device).dtype(scalar_type());
  const auto grad_options = at::TensorOptions(options_.device).dtype(torch_dtype(options_.grads_dtype));
  const bool with_grads = options_.gradients == WithGradients::Yes;
  for (const Bucket& bucket : plan_.buckets) on_demand_.push_back(is_on_demand(bucket, options_));
  // `make_arena` gives zeros for the resident ones.
  const auto make = [&](const at::TensorOptions& options, const std::function<bool(size_t)>& absent,
                        const std::function<at::Tensor(int64_t)>& make_arena) {
    int64_t resident = 0;
    for (size_t b = 0; b < plan_.buckets.size(); ++b)
      resident += absent(b) ? 0 : plan_.buckets[b].arena.count();
    const at::Tensor arena = make_arena(resident);
    std::vector<at::Tensor> buckets;
    int64_t at = 0;
    for (size_t b = 0; b < plan_.buckets.size(); ++b) {
      const int64_t count = plan_.buckets[b].arena.count();
      if (absent(b)) {
        buckets.push_back(at::empty({count}, options));
        release_memory(buckets.back());
      } else {
        buckets.push_back(arena.narrow(0, at, count));
        at += count;
      }
    }
    return buckets;
  };
  weights_ = make(
      weight_options, [&](size_t b) { return on_demand_[b]; },
      [&](int64_t count) { return more_weights(count); });
  if (with_grads)
    grads_ = make(
        grad_options, [&](size_t) { return options_.grads == BucketMemory::OnDemand; },
        [&](int64_t count) {
          memory_->allocating(MemoryPart::Gradients, count * size_bytes(options_.grads_dtype));
          return at::zeros({count}, grad_options);
        });
}

at::Tensor ParameterStore::more_weights(int64_t count) {
  const auto options = at::TensorOptions(options_.device).dtype(scalar_type());
  const int64_t bytes = count * size_bytes(options_.dtype);
  at::Tensor flat = at::empty({0}, options);
  flat.set_(c10::Storage(c10::Storage::use_byte_size_t(), static_cast<size_t>(bytes), lend_weights(bytes)), 0,
            {count}, {1});
  return flat.zero_();
}

at::DataPtr ParameterStore::lend_weights(int64_t bytes) {
  memory_->allocating(MemoryPart::Weights, bytes);
  const int64_t made_before = gather_memory_.size_bytes();
  at::DataPtr memory = gather_memory_.allocate(bytes);
  memory_->made_outside_allocator(gather_memory_.size_bytes() - made_before);
  if (gather_memory_.is_outside_allocator()) memory_->outside_allocator(bytes);
  return memory;
}

bool ParameterStore::has_weights(int64_t bucket) const {
  return has_memory(weights(bucket));
}
bool ParameterStore::has_grads(int64_t bucket) const {
  return has_memory(grads(bucket));
}

void ParameterStore::restore_weights(int64_t bucket) {
  if (has_weights(bucket)) return;
  restore_memory(weights(bucket), lend_weights(bytes_of(weights(bucket))));
}
void ParameterStore::release_weights(int64_t bucket) {
  if (!weights_on_demand(bucket) || !has_weights(bucket)) return;
  release_memory(weights(bucket));
  if (gather_memory_.is_outside_allocator()) memory_->outside_allocator(-bytes_of(weights(bucket)));
  memory_->released(MemoryPart::Weights, bytes_of(weights(bucket)));
}
void ParameterStore::restore_grads(int64_t bucket) {
  if (has_grads(bucket)) return;
  memory_->allocating(MemoryPart::Gradients, bytes_of(grads(bucket)));
  c10::StorageImpl* storage = grads(bucket).storage().unsafeGetStorageImpl();
  restore_memory(grads(bucket), storage->allocator()->allocate(storage->nbytes()));
}
void ParameterStore::release_grads(int64_t bucket) {
  if (options_.grads != BucketMemory::OnDemand || !has_grads(bucket)) return;
  release_memory(grads(bucket));
  memory_->released(MemoryPart::Gradients, bytes_of(grads(bucket)));
}

int64_t ParameterStore::index(const std::string& name) const {
  const auto found = by_name_.find(name);
  HEARTH_REQUIRE(found != by_name_.end(), "the model has no parameter '{}' on this rank", name);
  return found->second;
}

// Neighbours first..last as one tensor.
at::Tensor ParameterStore::fused(const std::vector<at::Tensor>& buckets, const std::string& first,
                                 const std::string& last) const {
  if (buckets.empty()) return {};
  const Parameter &begin = at(first), &end = at(last);
  const ParameterPlace& place = plan_.places[static_cast<size_t>(index(first))];
  const int64_t elements = end.offset + end.storage - begin.offset;
  auto shape = begin.shard.shape();
  shape[0] = elements / begin.shard.row_elements();
  return buckets[static_cast<size_t>(place.bucket)].narrow(0, place.offset, elements).view(shape);
}

at::Tensor ParameterStore::fused_weight(const std::string& first, const std::string& last) const {
  return fused(weights_, first, last);
}
at::Tensor ParameterStore::fused_main_grad(const std::string& first, const std::string& last) const {
  return fused(grads_, first, last);
}

void ParameterStore::initial_values(int64_t parameter_index, uint64_t seed, int64_t begin, int64_t end,
                                    float* out) const {
  const ParameterShard& shard = parameters_[static_cast<size_t>(parameter_index)].shard;
  const ParameterSpec& spec = shard.spec;
  if (spec.init == InitKind::Ones || spec.init == InitKind::Zeros) {
    std::fill(out, out + (end - begin), spec.init == InitKind::Ones ? 1.0f : 0.0f);
    return;
  }
  const CounterRng rng(seed, spec.name);
  const auto value = [&](uint64_t element) {
    return spec.init == InitKind::Uniform ? 2 * rng.uniform(element) - 1 : rng.normal(element);
  };
  at::parallel_for(begin, end, 4096, [&](int64_t from, int64_t to) {
    for_each_run(spec.shape, shard.box, from, to, [&](int64_t global, int64_t at, int64_t count) {
      for (int64_t i = 0; i < count; ++i)
        out[at + i - begin] = static_cast<float>(value(static_cast<uint64_t>(global + i)) * spec.init_std);
    });
  });
}

void ParameterStore::fill(const Fill& produce, const BucketDone& done) {
  for (size_t b = 0; b < plan_.buckets.size(); ++b) fill_bucket(static_cast<int64_t>(b), produce, done);
}

void ParameterStore::fill_bucket(int64_t bucket, const Fill& produce, const BucketDone& done) {
  constexpr int64_t kStagingElements = int64_t{1} << 24;  // 64 MiB of fp32 on the host at a time
  const auto b = static_cast<size_t>(bucket);
  const bool was_there = has_weights(bucket);
  restore_weights(bucket);
  if (!was_there) weights_[b].zero_();  // padding
  for (const int64_t index : plan_.buckets[b].parameters) {
    const at::Tensor flat = parameters_[static_cast<size_t>(index)].weight.view({-1});
    const int64_t numel = flat.numel();
    at::Tensor staging = at::empty({std::min(numel, kStagingElements)}, at::kFloat);
    for (int64_t begin = 0; begin < numel; begin += kStagingElements) {
      const int64_t count = std::min(kStagingElements, numel - begin);
      produce(index, begin, begin + count, staging.data_ptr<float>());
      at::Tensor target = flat.narrow(0, begin, count);
      target.copy_(staging.narrow(0, 0, count));
    }
  }
  if (done) done(bucket);
  if (!was_there) release_weights(bucket);
}

void ParameterStore::initialize(uint64_t seed, const BucketDone& done) {
  fill([&](int64_t index, int64_t begin, int64_t end,
           float* out) { initial_values(index, seed, begin, end, out); },
       done);
}

void ParameterStore::read(const TensorSource& source, const std::string& prefix, int64_t parameter_index,
                          int64_t begin, int64_t end, float* out) const {
  const ParameterShard& shard = parameters_[static_cast<size_t>(parameter_index)].shard;
  for_each_run(shard.spec.shape, shard.box, begin, end, [&](int64_t global, int64_t at, int64_t count) {
    source.read_elements(prefix + shard.spec.name, global, global + count, DType::F32, out + (at - begin));
  });
}

void ParameterStore::require(const TensorSource& source) const {
  for (const auto& p : parameters_) {
    HEARTH_CHECK(source.contains(p.spec.name), BadInput, "{} has no tensor '{}'", source.describe(),
                 p.spec.name);
    const auto& stored = source.info(p.spec.name);
    HEARTH_CHECK(stored.shape == p.spec.shape, BadInput, "{}: '{}' has shape [{}], the model needs [{}]",
                 source.describe(), p.spec.name, fmt::join(stored.shape, ", "),
                 fmt::join(p.spec.shape, ", "));
  }
}

void ParameterStore::load(const TensorSource& source, const BucketDone& done) {
  require(source);
  fill([&](int64_t index, int64_t begin, int64_t end,
           float* out) { read(source, "", index, begin, end, out); },
       done);
}

}  // namespace hearth
