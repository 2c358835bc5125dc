// Peak memory of weights and gradients that come and go (ZeRO 2 and 3), by replaying on a bucket plan what
// trainer/optimizer/distributed_optimizer.cpp does while the model runs. Pure: numbers only. Value type.
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

namespace hearth {

class StateReplay {
 public:
  // `optimizer_bytes`: of AdamW's state for one parameter.
  StateReplay(const ModelConfig& config, const ModelPartition& partition, const StoreOptions& options,
              int64_t zero_stage, int64_t recompute_every_layers, int64_t optimizer_bytes);

  // One action of a pipeline rank. `deferred`: weight gradients of linears wait for weight_gradients().
  void forward(int chunk);
  void backward(int chunk, int micro, bool deferred);
  void weight_gradients(int chunk, int micro);
  // Both at once, by turns (parallel/side_by_side.h).
  void forward_and_backward(int forward_chunk, int backward_chunk, int backward_micro);

  // Largest so far, bytes.
  int64_t peak_weights() const { return weights_.peak; }
  int64_t peak_gradients() const { return gradients_.peak; }
  int64_t optimizer() const { return optimizer_; }

 private:
  struct Bytes {
    int64_t now = 0, peak = 0;
    void add(int64_t bytes) {
      now += bytes;
      peak = std::max(peak, now);
    }
  };
  struct BucketState {
    int64_t weight_bytes = 0, grad_bytes = 0;
    bool on_demand = false, gathered = false, has_grads = false, reducing = false;
    int64_t pending = 0, per_cycle = 0;
  };
  using Names = std::vector<std::string>;
  void use(int64_t unit, int64_t next);  // `next` is fetched ahead; -1: nothing is
  void gather(int64_t unit);
  void done(int64_t unit);
  void begin_gradient(const std::string& name);
  void end_gradient(const std::string& name);
  void gradient(const Names& names);
  void retire(int64_t bucket);
  void count_uses(const ModelChunk& chunk);
  void layer_backward(int64_t layer, const std::function<void(const Names&)>& linear);
  const ModelChunk& chunk(int number) const { return partition_.chunks[static_cast<size_t>(number)]; }
  int64_t largest_neighbours(const ModelChunk& chunk) const;
  int64_t head_unit() const { return config_.tie_word_embeddings ? 0 : 1 + config_.num_hidden_layers; }
  std::string head_table() const {
    return config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  }
  BucketState& bucket_of(const std::string& name) { return buckets_[static_cast<size_t>(bucket_.at(name))]; }

  ModelConfig config_;
  ModelPartition partition_;
  int64_t zero_stage_, data_ranks_, every_layers_;
  std::vector<BucketState> buckets_;
  std::map<std::string, int64_t> bucket_;  // by parameter
  std::map<int64_t, std::vector<int64_t>> unit_buckets_;
  std::deque<int64_t> reducing_;
  std::map<std::pair<int, int>, std::vector<Names>> deferred_;  // by chunk, micro
  Bytes weights_, gradients_;
  int64_t optimizer_ = 0;
};

}  // namespace hearth
