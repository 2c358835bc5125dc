// Peak memory of weights that come and go (ZeRO 3, NF4), by replaying on bucket plans what
// trainer/model/gathered_weights.cpp and quantized_weights.cpp do while a model runs. Pure: numbers only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "trainer/model/model_partition.h"
#include "trainer/model/parameter_store.h"

namespace hearth {

struct PeakBytes {
  int64_t now = 0, peak = 0;
  void add(int64_t bytes) {
    now += bytes;
    peak = std::max(peak, now);
  }
};

// One rank's part of a model, whose weights lie in one store or more (those below adapters, and the
// adapters). Several models may count in one `total`, which outlives them.
class WeightReplay {
 public:
  WeightReplay(const ModelConfig& config, const ModelPartition& partition, int64_t recompute_every_layers,
               PeakBytes& total);
  void add_store(const std::vector<ParameterShard>& shards, const StoreOptions& options);

  // Before a step: the first bucket of a model that is trained whole is there, gathered when it was updated.
  void begin();

  // Actions of a pipeline rank. Forward of the chunk with the head is its layers and then its loss, before
  // which the head may also answer without gradients (Transformer::logprobs).
  void layers(int chunk);
  enum class Head { Loss, LogprobsAndLoss };
  void loss(Head head);
  void backward(int chunk);
  bool has_head(int number) const { return chunk(number).head; }
  // Both at once, by turns (parallel/side_by_side.h): counts what the forward holds as if it were the most.
  void forward_and_backward(int forward_chunk, int backward_chunk);

  // The rows behind the final norm, without a loss (FrozenModel::hidden).
  void hidden();
  // FrozenModel::hold_head, and its end; nothing where this rank has no head.
  void hold_head();
  void drop_head();

 private:
  struct BucketState {
    int64_t bytes = 0;
    bool on_demand = false, here = false;
  };
  struct Store {
    std::vector<BucketState> buckets;
    std::map<int64_t, std::vector<int64_t>> of_unit;
    bool fetches_ahead = false;
  };
  void gather(Store& store, int64_t unit);
  void use(int64_t unit, int64_t next);  // `next` is fetched ahead; -1: nothing is
  void done(int64_t unit);
  int64_t largest_neighbours(const ModelChunk& chunk) const;
  const ModelChunk& chunk(int number) const { return partition_.chunks[static_cast<size_t>(number)]; }
  int64_t head_unit() const { return config_.tie_word_embeddings ? 0 : 1 + config_.num_hidden_layers; }

  ModelConfig config_;
  ModelPartition partition_;
  int64_t every_layers_;
  PeakBytes& total_;
  std::vector<Store> stores_;
};

}  // namespace hearth
