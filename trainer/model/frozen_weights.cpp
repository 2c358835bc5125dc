#include "trainer/model/frozen_weights.h"

#include "base/error.h"

namespace hearth {

FrozenForm frozen_form(int64_t zero_stage, int64_t data_parallel_size) {
  return zero_stage >= 3 && data_parallel_size > 1 ? FrozenForm::Sharded : FrozenForm::Resident;
}

StoreOptions frozen_store_options(FrozenForm form, DType dtype, int64_t data_parallel_size,
                                  at::Device device) {
  const bool sharded = form == FrozenForm::Sharded;
  return {.dtype = dtype,
          .device = device,
          .data_parallel_size = sharded ? data_parallel_size : 1,
          .weights = sharded                   ? BucketMemory::OnDemand
                     : form == FrozenForm::Nf4 ? BucketMemory::LayersOnDemand
                                               : BucketMemory::Resident};
}

namespace {
StoreOptions store_of(const FrozenOptions& options, Comm& data_parallel) {
  StoreOptions store =
      frozen_store_options(options.form, options.dtype, data_parallel.size(), options.device);
  store.memory = options.memory;
  if (options.form == FrozenForm::Sharded) store.gathered_by = &data_parallel;
  return store;
}
}  // namespace

FrozenWeights::FrozenWeights(const std::vector<ParameterShard>& shards, const FrozenOptions& options,
                             Comm& data_parallel)
    : store_(shards, store_of(options, data_parallel)) {
  if (options.form == FrozenForm::Sharded) {
    gathered_ = std::make_unique<GatheredWeights>(store_, data_parallel, "frozen");
    events_ = gathered_.get();
  } else if (options.form == FrozenForm::Nf4) {
    quantized_ = std::make_unique<QuantizedWeights>(store_);
    events_ = quantized_.get();
  }
}

ParameterStore::BucketDone FrozenWeights::keep() const {
  if (gathered_ == nullptr) return {};
  return [this](int64_t bucket) {
    if (store_.weights_on_demand(bucket)) gathered_->keep_part(bucket);
  };
}

void FrozenWeights::load(const TensorSource& source) {
  quantized_ ? quantized_->load(source) : store_.load(source, keep());
}

void FrozenWeights::initialize(uint64_t seed) {
  HEARTH_REQUIRE(quantized_ == nullptr, "quantised weights are read, not drawn");
  store_.initialize(seed, keep());
}

}  // namespace hearth
