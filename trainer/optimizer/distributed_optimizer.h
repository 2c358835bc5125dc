// AdamW over the flat arenas of a ParameterStore, data-parallel: zero_stage 0 (every rank updates everything after an
// all-reduce) or 1 (each rank updates its shard of every bucket: reduce-scatter, update, all-gather; Rajbhandari et al.
// 2020). One code path for one rank and many. Names follow Megatron-LM's distributed optimizer.
//
// A step:  begin_step() .. backward of each micro-batch, gradient_ready() per parameter .. finish_gradients()
//          .. step_totals() .. step() or skip_step().
// Not thread-safe. Borrows the store and the communicator.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "parallel/comm.h"
#include "trainer/model/parameter_store.h"
#include "trainer/optimizer/optimizer_config.h"

namespace hearth {

// A run of elements of one named tensor of the training state, as this rank holds it.
struct StateSlice {
  std::string name;            // "model.norm.weight", "optimizer.exp_avg.model.norm.weight", ...
  std::vector<int64_t> shape;  // of the whole tensor
  int64_t begin = 0, end = 0;  // elements of the flattened tensor
  at::Tensor values;           // view [end - begin], on the model's device
};

class DistributedOptimizer {
 public:
  // Takes the weights in the store as the start; exact fp32 masters can be set with load_masters().
  DistributedOptimizer(const OptimizerConfig& config, ParameterStore& parameters, Comm& data_parallel,
                       int64_t zero_stage);

  // Clears the gradients. `uses[i]`: how often parameter i reports in the last micro-batch of the step.
  void begin_step(const std::vector<int64_t>& uses);
  // From now on gradient_ready() counts: the next backward is the last of the step, so that a bucket is reduced as
  // soon as its last gradient has landed.
  void begin_last_micro_batch() { last_micro_batch_ = true; }
  void gradient_ready(int64_t parameter_index);
  // Waits for every bucket. Gradients are then sums over all ranks (of this rank's shard in stage 1).
  void finish_gradients();

  // fp64 [1] on the device: sum of squares of the gradients over this rank's share of every bucket; the sum over ranks
  // is the squared norm.
  at::Tensor local_sum_of_squares() const;

  // One AdamW update with gradients x grad_scale, then makes the new parameters visible on all ranks.
  void step(double lr, double grad_scale);
  int64_t num_updates() const { return num_updates_; }
  void set_num_updates(int64_t updates) { num_updates_ = updates; }

  // What a checkpoint holds, split over the data-parallel ranks in every stage: each element is written once.
  std::vector<StateSlice> state_slices() const;
  // Reads this rank's masters and moments, and the parameters, from a checkpoint of any layout.
  void load(const TensorSource& source);
  // Sets this rank's fp32 masters from `values(parameter, begin, end, out)`.
  void load_masters(const std::function<void(int64_t, int64_t, int64_t, float*)>& values);
  // True when this rank's masters are all finite.
  bool masters_are_finite() const;

 private:
  struct BucketState {
    ElementRange whole, owned;       // of the arena
    at::Tensor master, exp_avg, exp_avg_sq;  // fp32 [owned.count()]
    at::Tensor no_decay_ranges;      // int64 [R, 2], relative to owned.begin
    int64_t pending = 0;             // gradients still to come
    WorkPtr reduction;
  };
  void reduce(BucketState& bucket, size_t index);
  void gather_parameters();
  at::Tensor no_decay_ranges(ElementRange owned) const;
  // Calls visit(parameter, element range within it, bucket, offset within bucket.owned) for a range of every bucket.
  void for_each_part(const std::function<ElementRange(const BucketState&, int64_t)>& range_of,
                     const std::function<void(int64_t, ElementRange, const BucketState&, int64_t)>& visit) const;
  void load_into(const std::string& prefix, const TensorSource& source, at::Tensor BucketState::*buffer);

  OptimizerConfig config_;
  ParameterStore& parameters_;
  Comm& comm_;
  int64_t zero_stage_;
  bool separate_masters_;  // the model computes in another dtype than fp32
  bool last_micro_batch_ = false;
  int64_t num_updates_ = 0;
  std::vector<BucketState> buckets_;
  std::vector<int64_t> left_;  // per parameter: reports still to come
};

}  // namespace hearth
