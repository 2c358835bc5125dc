// The parameters of one rank's part of the model, in flat buckets (and, for training, flat gradient buckets).
// Layout comes from a BucketPlan (parallel/zero/bucket_plan.h): buckets in backward order, groups of
// neighbours (q,k,v; gate,up) without gaps, so that a fused GEMM sees a group as one matrix. Matrices of
// layers, each vocabulary table and the vectors (norms, biases) lie in buckets of their own kind. Embedding
// and head rows are padded to a multiple of kVocabPadding in memory only: no file ever sees the padding,
// which stays zero. Memory of buckets can be given back and asked for again (ZeRO 2 and 3); tensors handed
// out are views that stay valid objects all the time and may be read or written only while their bucket is
// there. Not thread-safe. Views live as long as the store.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "parallel/tensor/tensor_dtype.h"
#include "parallel/zero/bucket_plan.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/gather_memory.h"
#include "trainer/model/memory_ledger.h"
#include "trainer/model/model_config.h"
#include "trainer/model/model_partition.h"

namespace hearth {

at::ScalarType torch_dtype(DType dtype);

struct Parameter {
  ParameterSpec spec;                          // of the whole model: logical shape, HF name
  ParameterShard shard;                        // the part held here
  int64_t offset = 0;                          // first element, counted over all buckets
  int64_t storage = 0;                         // elements in memory, padding rows included
  at::Tensor weight;                           // [shard.shape()], view
  at::Tensor main_grad;                        // same shape, view; undefined without gradients
  at::Tensor padded_weight, padded_main_grad;  // with the padding rows (same as above where there are none)
};

enum class WithGradients { No, Yes };
// OnDemand: absent until restore_weights() or restore_grads(). LayersOnDemand: of weights, but not the
// tables.
enum class BucketMemory { Resident, OnDemand, LayersOnDemand };

struct StoreOptions {
  DType dtype = DType::F32;
  DType grads_dtype = DType::F32;  // or BF16, of parameters in BF16
  at::Device device = at::kCPU;
  WithGradients gradients = WithGradients::No;
  int64_t data_parallel_size = 1;  // every bucket divides by it
  int64_t bucket_elements = int64_t{1} << 40;
  BucketMemory weights = BucketMemory::Resident;  // on demand: a bucket per layer; vectors stay resident
  BucketMemory grads = BucketMemory::Resident;
  MemoryLedger* memory = nullptr;  // where weights and gradients are counted; null: a ledger of its own
  Comm* gathered_by = nullptr;     // ranks that will gather the weights: these lie in its GatherMemory
};

// Where parameters lie: the one that the plan calls i is `shards[order[i]]`. Pure.
struct StoragePlan {
  BucketPlan plan;
  std::vector<size_t> order;
};
StoragePlan storage_plan(const std::vector<ParameterShard>& shards, const StoreOptions& options);
// A bucket of the plan whose weights come and go.
bool is_on_demand(const Bucket& bucket, const StoreOptions& options);

class ParameterStore {
 public:
  ParameterStore(const std::vector<ParameterShard>& shards, const StoreOptions& options);
  // The whole model on one rank.
  ParameterStore(const ModelConfig& config, DType dtype, at::Device device, WithGradients gradients,
                 int64_t data_parallel_size, int64_t bucket_elements);

  const BucketPlan& plan() const { return plan_; }
  const StoreOptions& options() const { return options_; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  bool contains(const std::string& name) const { return by_name_.count(name) != 0; }
  int64_t index(const std::string& name) const;
  const Parameter& at(const std::string& name) const { return parameters_[static_cast<size_t>(index(name))]; }

  // The neighbours `first`..`last` as one matrix [sum of rows, cols] (or one vector, for biases).
  at::Tensor fused_weight(const std::string& first, const std::string& last) const;
  at::Tensor fused_main_grad(const std::string& first, const std::string& last) const;

  // Flat buckets, [plan().buckets[bucket].arena.count()]: in the parameters' and the gradients' dtype.
  const at::Tensor& weights(int64_t bucket) const { return weights_[static_cast<size_t>(bucket)]; }
  const at::Tensor& grads(int64_t bucket) const { return grads_[static_cast<size_t>(bucket)]; }
  // Buckets whose weights come and go.
  bool weights_on_demand(int64_t bucket) const { return on_demand_[static_cast<size_t>(bucket)]; }
  // Memory of a bucket: contents are undefined after it is restored. Resident ones start as zeros.
  void restore_weights(int64_t bucket);
  void release_weights(int64_t bucket);
  bool has_weights(int64_t bucket) const;
  // Zeros for `count` weights, where the buckets' memory comes from; counted in memory().
  at::Tensor more_weights(int64_t count);
  void restore_grads(int64_t bucket);
  void release_grads(int64_t bucket);
  bool has_grads(int64_t bucket) const;
  // Buckets that a unit (ParameterShard::unit) reads.
  const std::vector<int64_t>& buckets_of_unit(int64_t unit) const { return unit_buckets_.at(unit); }
  bool has_unit(int64_t unit) const { return unit_buckets_.count(unit) != 0; }
  at::Device device() const { return options_.device; }
  // Weights and gradients held here; who holds more training state adds to it.
  MemoryLedger& memory() { return *memory_; }
  at::ScalarType scalar_type() const { return torch_dtype(options_.dtype); }

  // Calls `fill(parameter index, begin, end, fp32 out)` for every element held here, bucket by bucket, and
  // stores what it gives; `done(bucket)` after each bucket, while its memory is there.
  using Fill = std::function<void(int64_t parameter, int64_t begin, int64_t end, float* out)>;
  using BucketDone = std::function<void(int64_t bucket)>;
  void fill(const Fill& fill, const BucketDone& done);
  void fill_bucket(int64_t bucket, const Fill& fill, const BucketDone& done = {});

  // Draws every weight from the counter-based generator: a pure function of (seed, name, element of the whole
  // tensor).
  void initialize(uint64_t seed, const BucketDone& done = {});
  // The fp32 value that initialize() rounds: elements [begin, end) of the part of parameter `index` held
  // here.
  void initial_values(int64_t index, uint64_t seed, int64_t begin, int64_t end, float* out) const;
  // Names and whole shapes must be in `source`: Error{BadInput}.
  void require(const TensorSource& source) const;
  // Copies every parameter out of `source`, converting; names and shapes must match (Error{BadInput}).
  void load(const TensorSource& source, const BucketDone& done = {});
  // Elements [begin, end) of the part of parameter `index` held here, of `source`'s tensor `prefix` + name,
  // in fp32.
  void read(const TensorSource& source, const std::string& prefix, int64_t index, int64_t begin, int64_t end,
            float* out) const;

 private:
  void allocate();
  at::DataPtr lend_weights(int64_t bytes);  // counts them
  at::Tensor fused(const std::vector<at::Tensor>& buckets, const std::string& first,
                   const std::string& last) const;

  StoreOptions options_;
  std::unique_ptr<MemoryLedger> own_memory_;
  MemoryLedger* memory_;
  BucketPlan plan_;
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, int64_t> by_name_;
  GatherMemory gather_memory_;
  std::vector<at::Tensor> weights_, grads_;  // by bucket
  std::vector<bool> on_demand_;              // by bucket
  std::unordered_map<int64_t, std::vector<int64_t>> unit_buckets_;
};

}  // namespace hearth
