// Activation memory of one pipeline rank: what a block keeps, counted tensor by tensor, and a replay of the
// rank's actions. Pure. Value type. Letters as in trainer/model/block_functions.h: N rows of a micro-batch on
// this rank's positions, n = N or N / size with sequence parallelism, D, H, K, W, F of this tensor-parallel
// rank, V rows of its vocabulary tables.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/experiment_config.h"
#include "trainer/model/model_partition.h"

namespace hearth {

// Bytes of one layer, or of the head.
struct ActivationSizes {
  int64_t boundary = 0;       // [n, D]: what blocks and chunks pass on
  int64_t block = 0;          // kept by one layer for its backward
  int64_t rebuilt_group = 0;  // full recompute: kept for layers_per_group layers; 0 without
  int64_t layers_per_group = 1;
  int64_t rebuilt_in_backward = 0;  // full recompute: what a group keeps while its backward runs
  int64_t deferred = 0;             // what one layer's weight gradients wait for
  int64_t head = 0;                 // kept by final norm, head and loss
  int64_t micro_batch = 0;          // ids, targets, positions
  int64_t forward_working = 0, head_working = 0, backward_working = 0;
  int64_t deferred_working = 0, weights_working = 0;  // backward of the input alone, of the weights alone
};
ActivationSizes activation_sizes(const ExperimentConfig& config, const Mesh& mesh);

class ActivationReplay {
 public:
  ActivationReplay(const ActivationSizes& sizes, const ModelPartition& partition)
      : sizes_(sizes), partition_(partition) {}
  void perform(const Action& action);
  // Kept and working bytes at the moment with the largest sum.
  int64_t peak_kept() const { return peak_kept_; }
  int64_t peak_working() const { return peak_working_; }

 private:
  using Key = std::pair<int, int>;  // chunk, micro
  void compute(const Action& action);
  void transfer(const Action& action);
  void forward(Key key);
  void backward(Key key, bool defer);
  void see(int64_t working);
  const ModelChunk& chunk(Key key) const { return partition_.chunks[static_cast<size_t>(key.first)]; }
  int64_t kept_by(Key key) const;

  ActivationSizes sizes_;
  ModelPartition partition_;
  std::map<Key, int64_t> deferred_, arrived_, arrived_gradients_;
  int64_t sending_ = 0, now_ = 0, peak_kept_ = 0, peak_working_ = 0;
};

}  // namespace hearth
