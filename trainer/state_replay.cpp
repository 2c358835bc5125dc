#include "trainer/state_replay.h"

#include <fmt/core.h>

#include <algorithm>

#include "trainer/optimizer/distributed_optimizer.h"

namespace hearth {
namespace {

// The unit that backward uses after that of `layer`. The table's gradient needs no table.
int64_t before(int64_t layer) {
  return layer > 0 ? layer : -1;
}

}  // namespace

StateReplay::StateReplay(const ModelConfig& config, const ModelPartition& partition,
                         const StoreOptions& options, int64_t zero_stage, int64_t recompute_every_layers,
                         int64_t optimizer_bytes)
    : config_(config),
      partition_(partition),
      zero_stage_(zero_stage),
      data_ranks_(options.data_parallel_size),
      every_layers_(recompute_every_layers) {
  const auto shards = parameter_shards(config, partition);
  const StoragePlan storage = storage_plan(shards, options);
  const int64_t element = size_bytes(options.dtype);
  for (size_t i = 0; i < storage.plan.names.size(); ++i) {
    const int64_t bucket = storage.plan.places[i].bucket;
    bucket_[storage.plan.names[i]] = bucket;
    auto& of_unit = unit_buckets_[shards[storage.order[i]].unit];
    if (std::find(of_unit.begin(), of_unit.end(), bucket) == of_unit.end()) of_unit.push_back(bucket);
  }
  for (const Bucket& planned : storage.plan.buckets) {
    const int64_t count = planned.arena.count(), owned = zero_stage >= 1 ? count / data_ranks_ : count;
    BucketState bucket{.weight_bytes = count * element, .grad_bytes = count * 4};
    bucket.on_demand = is_on_demand(planned, options);
    weights_.add(bucket.on_demand ? owned * element : count * element);
    gradients_.add((zero_stage >= 2 ? owned : count) * 4);
    optimizer_ += owned * optimizer_bytes;
    buckets_.push_back(bucket);
  }
  for (const ModelChunk& part : partition_.chunks) count_uses(part);
  for (BucketState& bucket : buckets_) bucket.pending = bucket.per_cycle;
}

// How often the bucket's gradients are reported in one micro-batch (Transformer::uses_per_micro).
void StateReplay::count_uses(const ModelChunk& part) {
  for (const auto& [name, bucket] : bucket_) {
    int64_t uses = 0;
    if (name == "model.embed_tokens.weight") {
      uses = (part.embedding ? 1 : 0) + (part.head && config_.tie_word_embeddings ? 1 : 0);
    } else if (name == "lm_head.weight" || name == "model.norm.weight") {
      uses = part.head ? 1 : 0;
    } else {
      const int64_t layer = std::stoll(name.substr(std::string("model.layers.").size()));
      uses = layer >= part.first_layer && layer < part.first_layer + part.num_layers ? 1 : 0;
    }
    buckets_[static_cast<size_t>(bucket)].per_cycle += uses;
  }
}

void StateReplay::gather(int64_t unit) {
  const auto found = unit_buckets_.find(unit);
  if (found == unit_buckets_.end()) return;
  for (const int64_t index : found->second) {
    BucketState& bucket = buckets_[static_cast<size_t>(index)];
    if (!bucket.on_demand || bucket.gathered) continue;
    bucket.gathered = true;
    weights_.add(bucket.weight_bytes);
  }
}

void StateReplay::use(int64_t unit, int64_t next) {
  gather(unit);
  gather(next);
}

void StateReplay::done(int64_t unit) {
  for (const int64_t index : unit_buckets_.at(unit)) {
    BucketState& bucket = buckets_[static_cast<size_t>(index)];
    if (bucket.gathered) weights_.add(-bucket.weight_bytes);
    bucket.gathered = false;
  }
}

void StateReplay::begin_gradient(const std::string& name) {
  if (zero_stage_ < 2) return;
  BucketState& bucket = bucket_of(name);
  if (bucket.reducing) {
    retire(bucket_.at(name));
    reducing_.erase(std::find(reducing_.begin(), reducing_.end(), bucket_.at(name)));
  }
  if (!bucket.has_grads) gradients_.add(bucket.grad_bytes);
  bucket.has_grads = true;
}

void StateReplay::end_gradient(const std::string& name) {
  BucketState& bucket = bucket_of(name);
  if (zero_stage_ < 2 || --bucket.pending > 0) return;
  bucket.pending = bucket.per_cycle;
  if (!bucket.has_grads) return;
  gradients_.add(bucket.grad_bytes / data_ranks_);  // what the reduction delivers
  bucket.reducing = true;
  reducing_.push_back(bucket_.at(name));
  if (static_cast<int64_t>(reducing_.size()) > DistributedOptimizer::kReductionsInFlight) {
    retire(reducing_.front());
    reducing_.pop_front();
  }
}

void StateReplay::retire(int64_t index) {
  BucketState& bucket = buckets_[static_cast<size_t>(index)];
  gradients_.add(-bucket.grad_bytes - bucket.grad_bytes / data_ranks_);
  bucket.reducing = bucket.has_grads = false;
}

void StateReplay::gradient(const Names& names) {
  for (const auto& name : names) begin_gradient(name);
  for (const auto& name : names) end_gradient(name);
}

void StateReplay::forward(int number) {
  const ModelChunk& part = chunk(number);
  if (part.embedding) {
    use(0, 1);
    done(0);
  }
  const int64_t last = part.first_layer + part.num_layers - 1;
  for (int64_t layer = part.first_layer; layer <= last; ++layer) {
    use(1 + layer, part.head && layer == last ? head_unit() : 2 + layer);
    done(1 + layer);
  }
  if (!part.head) return;
  use(head_unit(), 1 + last);
  begin_gradient(head_table());  // head and loss form their gradients in forward
  done(head_unit());
}

void StateReplay::layer_backward(int64_t layer, const std::function<void(const Names&)>& linear) {
  const std::string p = fmt::format("model.layers.{}.", layer), attn = p + "self_attn.";
  const auto matrices = [&](const Names& stems, bool biased) {
    Names names;
    for (const auto& stem : stems) names.push_back(stem + ".weight");
    if (biased)
      for (const auto& stem : stems) names.push_back(stem + ".bias");
    return names;
  };
  use(1 + layer, before(layer));
  linear(matrices({p + "mlp.down_proj"}, false));
  linear(matrices({p + "mlp.gate_proj", p + "mlp.up_proj"}, false));
  gradient({p + "post_attention_layernorm.weight"});
  linear(matrices({attn + "o_proj"}, config_.attention_output_bias));
  if (config_.qk_norm) {
    gradient({attn + "q_norm.weight"});
    gradient({attn + "k_norm.weight"});
  }
  linear(matrices({attn + "q_proj", attn + "k_proj", attn + "v_proj"}, config_.attention_bias));
  gradient({p + "input_layernorm.weight"});
  done(1 + layer);
}

void StateReplay::backward(int number, int micro, bool deferred) {
  const ModelChunk& part = chunk(number);
  const auto linear = [&](const Names& names) {
    if (deferred) {
      deferred_[{number, micro}].push_back(names);
    } else {
      gradient(names);
    }
  };
  if (part.head) {
    end_gradient(head_table());
    gradient({"model.norm.weight"});
  }
  const int64_t first = part.first_layer, count = part.num_layers,
                step = every_layers_ > 0 ? every_layers_ : count;
  for (int64_t group = (count - 1) / step; group >= 0; --group) {
    const int64_t begin = first + group * step, end = std::min(first + count, begin + step);
    if (every_layers_ > 0)
      for (int64_t layer = begin; layer < end; ++layer)
        use(1 + layer, before(layer));  // rebuilt: stays for its backward
    for (int64_t layer = end - 1; layer >= begin; --layer) layer_backward(layer, linear);
  }
  if (part.embedding) gradient({"model.embed_tokens.weight"});
}

// Weights of the unit of a chunk in use and of the one fetched ahead, where they come and go.
int64_t StateReplay::largest_neighbours(const ModelChunk& part) const {
  const auto bytes = [&](int64_t unit) {
    int64_t sum = 0;
    const auto found = unit_buckets_.find(unit);
    if (found == unit_buckets_.end()) return sum;
    for (const int64_t index : found->second) {
      const BucketState& bucket = buckets_[static_cast<size_t>(index)];
      sum += bucket.on_demand ? bucket.weight_bytes : 0;
    }
    return sum;
  };
  const int64_t last = part.first_layer + part.num_layers;
  int64_t most = part.head ? bytes(last) + bytes(head_unit()) : 0;
  // The table is read at once, without a turn.
  for (int64_t unit = 1 + part.first_layer; unit < last; ++unit)
    most = std::max(most, bytes(unit) + bytes(unit + 1));
  return most;
}

// While backward runs, the forward beside it holds some unit and the next: counted as if they were the
// largest.
void StateReplay::forward_and_backward(int forward_chunk, int backward_chunk, int backward_micro) {
  forward(forward_chunk);
  const int64_t held = largest_neighbours(chunk(forward_chunk));
  weights_.add(held);
  backward(backward_chunk, backward_micro, /*deferred=*/false);
  weights_.add(-held);
}

void StateReplay::weight_gradients(int number, int micro) {
  for (const Names& names : deferred_[{number, micro}]) gradient(names);
  deferred_.erase({number, micro});
}

}  // namespace hearth
