// AdamW over the flat buckets of a ParameterStore, data-parallel, with the stages of ZeRO (Rajbhandari et al.
// 2020):
//   0  every rank updates everything after an all-reduce
//   1  each rank updates its shard of every bucket: reduce-scatter once a step, update, all-gather
//   2  gradients too: reduce-scatter per micro-batch into a shard; whole gradient buckets live only in
//   between 3  parameters too: whole weight buckets are gathered around each use, one unit ahead; vectors
//   (norms, biases) stay
// One code path for one rank and many. Names follow Megatron-LM's distributed optimizer.
//
// A step:  begin_step() .. forward and backward of all micro-batches, which report to the ParameterEvents
// side
//          .. finish_gradients() .. local_sum_of_squares() .. step() or nothing.
// Gradients are kept, and summed over ranks, in the store's grads_dtype. No matrix is cleared: the first
// contribution to it overwrites what an earlier step, or restored memory, left there.
// The all-gather of stages 1 and 2 runs on while the next forward begins: before_use() waits for what it
// needs. Not thread-safe. Borrows the store and the communicators.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "parallel/comm.h"
#include "trainer/model/gathered_weights.h"
#include "trainer/optimizer/optimizer_config.h"

namespace hearth {

// Elements [begin, end) of `box` of one named tensor of the training state, as this rank holds them.
struct StateSlice {
  std::string name;            // "model.norm.weight", "optimizer.exp_avg.model.norm.weight", ...
  std::vector<int64_t> shape;  // of the whole tensor
  Box box;                     // the part that this tensor-parallel rank holds
  int64_t begin = 0, end = 0;  // row-major within the box
  at::Tensor values;           // view [end - begin], on the model's device
};

// Groups over which gradients are added. Null: that group is this rank alone.
struct OptimizerComms {
  Comm& data_parallel;  // data and context parallel ranks, or those of them that share one copy of the state
  Comm* replicas = nullptr;  // ranks that hold the same shard of other copies
  Comm* tensor_parallel = nullptr;
  Comm* kv_replicas = nullptr;
  Comm* tied_embedding = nullptr;
};

// What AdamW keeps in which type (precision.main_params_dtype and the moments'). bf16 is rounded at random.
struct OptimizerDtypes {
  bool masters = true;  // an fp32 copy where the parameters are not fp32 themselves
  at::ScalarType exp_avg = at::kFloat, exp_avg_sq = at::kFloat;
};

class DistributedOptimizer : public ParameterEvents {
 public:
  // Reduced gradient buckets that may wait for their sum while backward goes on: two hide one transfer behind
  // the computation of the next bucket, and bound the memory of stages 2 and 3.
  static constexpr int64_t kReductionsInFlight = 2;

  // Takes the weights in the store as the start where they are resident; load_masters() or load() set them
  // otherwise.
  DistributedOptimizer(const OptimizerConfig& config, ParameterStore& parameters, const OptimizerComms& comms,
                       int64_t zero_stage, const OptimizerDtypes& dtypes = {});
  // How a store is made for a stage. Weights may be resident in any.
  static BucketMemory weight_memory(int64_t zero_stage);
  static BucketMemory grad_memory(int64_t zero_stage);

  // New sums begin. `uses[i]`: contributions to parameter i in one micro-batch.
  void begin_step(const std::vector<int64_t>& uses, int64_t micro_batches);
  void before_use(int64_t unit, UsePhase phase) override { gathered_.before_use(unit, phase); }
  void after_use(int64_t unit, UsePhase phase) override { gathered_.after_use(unit, phase); }
  void expect_use(int64_t unit) override { gathered_.expect_use(unit); }
  kernels::GradientWrite before_gradient(const std::vector<int64_t>& parameters) override;
  void gradient_ready(const std::vector<int64_t>& parameters) override;
  // Waits for every bucket and adds what other parallel groups hold. Gradients are then sums over all ranks
  // (of this rank's shard from stage 1 on).
  void finish_gradients();

  // fp64 [1] on the device: sum of squares of the gradients that this rank counts; the sum over all ranks of
  // the job is the squared norm.
  at::Tensor local_sum_of_squares() const;

  // One AdamW update with gradients x grad_scale; starts to make the new parameters visible on all ranks.
  void step(double lr, double grad_scale);
  // Waits until resident parameters are whole on this rank, and gives back buckets that were fetched ahead.
  void finish_parameters() { gathered_.finish(); }
  int64_t num_updates() const { return num_updates_; }
  void set_num_updates(int64_t updates) { num_updates_ = updates; }

  // Sums of gradients after finish_gradients(), by parameter name, split over the ranks as state_slices()
  // are.
  std::vector<StateSlice> gradient_slices() const;
  // What a checkpoint holds, split over the ranks in every stage: each element is written once over the job.
  std::vector<StateSlice> state_slices();
  // Reads this rank's masters and moments, and the parameters, from a checkpoint of any layout.
  void load(const TensorSource& source);
  // Sets parameters and this rank's fp32 masters from `values(parameter, begin, end, out)`.
  void load_masters(const ParameterStore::Fill& values);
  // True when this rank's masters are all finite.
  bool masters_are_finite() const;

 private:
  struct BucketState {
    int64_t index = 0;
    ElementRange owned;  // that this rank updates, within the bucket
    ElementRange share;  // that this rank saves and measures, within owned
    at::Tensor master, exp_avg,
        exp_avg_sq;                      // [owned.count()]; without masters the first is of the parameters
    at::Tensor grad_shard;               // stage 2, 3: [owned.count()]
    bool has_sum = false;                // stage 2, 3: grad_shard is of this step
    at::Tensor no_decay_ranges;          // int64 [R, 2], relative to owned.begin
    std::vector<ElementRange> counted;   // parts of `owned` that enter the norm here, relative to owned.begin
    std::vector<ElementRange> cleared;   // of the bucket: all but the matrices, zeroed when sums begin
    int64_t pending = 0, per_cycle = 0;  // contributions until the next reduction
    WorkPtr reduction;
    at::Tensor incoming;              // stage 2, 3: what the reduction under way delivers
    std::vector<at::Tensor> squares;  // of the step's sums, where they were measured as they arrived
  };
  struct Summation {  // of one range over another parallel group
    Comm* comm = nullptr;
    size_t bucket = 0;
    ElementRange range;  // relative to owned.begin
  };
  bool shards_gradients() const { return zero_stage_ >= 2; }
  ElementRange in_bucket(int64_t parameter) const;
  BucketState& bucket_of(int64_t parameter);
  bool is_matrix(int64_t parameter) const;
  Comm* comm_of(GradientSum sum) const;
  void plan_ranges(BucketState& bucket);
  at::Tensor owned_grads(const BucketState& bucket) const;
  at::Tensor owned_weights(const BucketState& bucket) const;
  void plan_clearing(BucketState& bucket);
  // New sums begin in the bucket's memory, which holds anything.
  void begin_sums(const BucketState& bucket);
  // Clears the matrices that got no contribution since then.
  void complete_sums(const BucketState& bucket);
  void reduce(BucketState& bucket);
  void retire(BucketState& bucket);
  std::vector<at::Tensor> sum_of_squares(const BucketState& bucket) const;
  void update(BucketState& bucket, double lr, double grad_scale);
  // Calls visit(parameter, range within its box, bucket, offset within bucket.owned) for a range of every
  // bucket.
  void for_each_part(
      ElementRange BucketState::*range,
      const std::function<void(int64_t, ElementRange, const BucketState&, int64_t)>& visit) const;
  StateSlice slice(std::string_view prefix, int64_t parameter, ElementRange in_box, const at::Tensor& owned,
                   int64_t at) const;
  void load_into(const std::string& prefix, const TensorSource& source, at::Tensor BucketState::*buffer);

  OptimizerConfig config_;
  ParameterStore& parameters_;
  OptimizerComms comms_;
  Comm& comm_;
  int64_t zero_stage_;
  bool separate_masters_;  // fp32 copies of parameters in another type
  DType grads_dtype_;
  GatheredWeights gathered_;
  int64_t num_updates_ = 0;
  std::vector<BucketState> buckets_;
  std::vector<Summation> summations_;
  std::vector<bool> has_sum_;     // by parameter: main_grad is of this step; unused for vectors
  std::deque<size_t> in_flight_;  // buckets whose reduction is under way, oldest first
};

}  // namespace hearth
