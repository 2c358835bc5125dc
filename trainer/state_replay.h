// Peak memory of gradients that come and go (ZeRO 2 and 3), by replaying on a bucket plan what
// trainer/optimizer/distributed_optimizer.cpp does while the model runs; and what the optimizer holds.
// Weights are weight_replay's. Pure: numbers only. Value type.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "trainer/model/model_partition.h"
#include "trainer/model/parameter_store.h"
#include "trainer/weight_replay.h"

namespace hearth {

class StateReplay {
 public:
  // `trained`: the rank's part of what is trained, the model's parameters or its adapters. `optimizer_bytes`:
  // of AdamW's state for one parameter.
  StateReplay(const ModelConfig& config, const ModelPartition& partition,
              const std::vector<ParameterShard>& trained, const StoreOptions& options, int64_t zero_stage,
              int64_t optimizer_bytes);

  // One action of a pipeline rank. `deferred`: weight gradients of linears wait for weight_gradients().
  void forward(int chunk);
  void backward(int chunk, int micro, bool deferred);
  void weight_gradients(int chunk, int micro);

  // Largest so far, bytes.
  int64_t peak_gradients() const { return gradients_.peak; }
  int64_t optimizer() const { return optimizer_; }

 private:
  struct BucketState {
    int64_t grad_bytes = 0;
    bool has_grads = false, reducing = false;
    int64_t pending = 0, per_cycle = 0;
  };
  using Names = std::vector<std::string>;
  void begin_gradient(const std::string& name);
  void end_gradient(const std::string& name);
  void gradient(const Names& names);
  Names trained(const Names& weights) const;  // of these, or of the adapters on them
  void retire(int64_t bucket);
  void count_uses(const ModelChunk& chunk);
  // `linear` is told of weight gradients; those that fill gathers, where rows are split, come to `filling`.
  using Linear = std::function<void(const Names&)>;
  void layer_backward(int64_t layer, const Linear& linear, const Linear& filling);
  void gather_rows();
  const ModelChunk& chunk(int number) const { return partition_.chunks[static_cast<size_t>(number)]; }
  std::string head_table() const {
    return config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  }
  BucketState& bucket_of(const std::string& name) { return buckets_[static_cast<size_t>(bucket_.at(name))]; }

  ModelConfig config_;
  ModelPartition partition_;
  int64_t zero_stage_, data_ranks_;
  std::vector<BucketState> buckets_;
  std::map<std::string, int64_t> bucket_;  // by parameter
  std::deque<int64_t> reducing_;
  std::map<std::pair<int, int>, std::vector<Names>> deferred_;  // by chunk, micro
  std::deque<Names> filler_;                                    // Transformer::fill_gathers
  PeakBytes gradients_;
  int64_t optimizer_ = 0;
};

}  // namespace hearth
