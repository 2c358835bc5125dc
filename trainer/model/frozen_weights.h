// The weights of a model that is used and not trained: what lies below adapters, a teacher, a reference.
// Whole on every rank, split over the data-parallel ranks and gathered around each use, or quantised (QLoRA:
// Dettmers et al. 2023). Collective over the data-parallel ranks. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/model/gathered_weights.h"
#include "trainer/model/quantized_weights.h"

namespace hearth {

enum class FrozenForm { Resident, Sharded, Nf4 };
// Of weights that are not quantised. Pure.
FrozenForm frozen_form(int64_t zero_stage, int64_t data_parallel_size);
StoreOptions frozen_store_options(FrozenForm form, DType dtype, int64_t data_parallel_size,
                                  at::Device device);

struct FrozenOptions {
  FrozenForm form = FrozenForm::Resident;
  DType dtype = DType::F32;
  at::Device device = at::kCPU;
  MemoryLedger* memory = nullptr;  // where they are counted; null: a ledger of their own
};

class FrozenWeights {
 public:
  // Without values until load() or initialize(). Borrows `data_parallel`.
  FrozenWeights(const std::vector<ParameterShard>& shards, const FrozenOptions& options, Comm& data_parallel);
  // As those of ParameterStore.
  void load(const TensorSource& source);
  void initialize(uint64_t seed);  // not where they are quantised

  ParameterStore& parameters() { return store_; }
  // Who a model on these weights tells about their use.
  ParameterEvents& events() { return *events_; }

 private:
  ParameterStore::BucketDone keep() const;

  ParameterStore store_;
  std::unique_ptr<GatheredWeights> gathered_;    // null: not sharded
  std::unique_ptr<QuantizedWeights> quantized_;  // null: not quantised
  ParameterEvents nobody_;
  ParameterEvents* events_ = &nobody_;
};

}  // namespace hearth
