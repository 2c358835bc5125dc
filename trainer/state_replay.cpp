#include "trainer/state_replay.h"

#include <fmt/core.h>

#include <algorithm>

#include "trainer/model/lora_adapters.h"
#include "trainer/optimizer/distributed_optimizer.h"

namespace hearth {
StateReplay::StateReplay(const ModelConfig& config, const ModelPartition& partition,
                         const std::vector<ParameterShard>& trained, const StoreOptions& options,
                         int64_t zero_stage, int64_t optimizer_bytes)
    : config_(config),
      partition_(partition),
      zero_stage_(zero_stage),
      data_ranks_(options.data_parallel_size) {
  const int64_t grad_bytes = size_bytes(options.grads_dtype);
  const BucketPlan plan = storage_plan(trained, options).plan;
  for (size_t i = 0; i < plan.names.size(); ++i) bucket_[plan.names[i]] = plan.places[i].bucket;
  for (const Bucket& planned : plan.buckets) {
    const int64_t count = planned.arena.count(), owned = zero_stage >= 1 ? count / data_ranks_ : count;
    gradients_.add((zero_stage >= 2 ? owned : count) * grad_bytes);
    optimizer_ += owned * optimizer_bytes;
    buckets_.push_back({.grad_bytes = count * grad_bytes});
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

StateReplay::Names StateReplay::trained(const Names& weights) const {
  Names names;
  for (const auto& weight : weights) {
    if (bucket_.contains(weight)) names.push_back(weight);
    if (!weight.ends_with(".weight") || !bucket_.contains(lora_a_name(weight))) continue;
    names.push_back(lora_a_name(weight));
    names.push_back(lora_b_name(weight));
  }
  return names;
}

void StateReplay::gradient(const Names& weights) {
  const Names names = trained(weights);
  for (const auto& name : names) begin_gradient(name);
  for (const auto& name : names) end_gradient(name);
}

void StateReplay::forward(int number) {
  if (!chunk(number).head) return;
  for (const auto& name : trained({head_table()}))
    begin_gradient(name);  // head and loss form their gradients in forward
}

// ModelContext::gathered_beside_filler.
void StateReplay::gather_rows() {
  if (filler_.empty()) return;
  gradient(filler_.front());
  filler_.pop_front();
}

void StateReplay::layer_backward(int64_t layer, const Linear& linear, const Linear& filling) {
  const std::string p = fmt::format("model.layers.{}.", layer), attn = p + "self_attn.";
  const auto matrices = [&](const Names& stems, bool biased) {
    Names names;
    for (const auto& stem : stems) names.push_back(stem + ".weight");
    if (biased)
      for (const auto& stem : stems) names.push_back(stem + ".bias");
    return names;
  };
  gather_rows();
  filling(matrices({p + "mlp.down_proj"}, false));
  linear(matrices({p + "mlp.gate_proj", p + "mlp.up_proj"}, false));
  gradient({p + "post_attention_layernorm.weight"});
  gather_rows();
  filling(matrices({attn + "o_proj"}, config_.attention_output_bias));
  if (config_.qk_norm) {
    gradient({attn + "q_norm.weight"});
    gradient({attn + "k_norm.weight"});
  }
  linear(matrices({attn + "q_proj", attn + "k_proj", attn + "v_proj"}, config_.attention_bias));
  gradient({p + "input_layernorm.weight"});
}

void StateReplay::backward(int number, int micro, bool deferred) {
  const ModelChunk& part = chunk(number);
  // Where the table's gradient travels, the first layer's wait for it.
  const bool table_first = data_ranks_ > 1 && part.embedding && bucket_.contains("model.embed_tokens.weight");
  bool waits = deferred;
  const auto linear = [&](const Names& names) {
    if (waits) {
      deferred_[{number, micro}].push_back(names);
    } else {
      gradient(names);
    }
  };
  const bool fills = partition_.tensor_size > 1 && partition_.sequence_parallel;
  const auto filling = [&](const Names& names) {
    if (fills && !waits) {
      filler_.push_back(names);
    } else {
      linear(names);
    }
  };
  if (part.head) {
    for (const auto& name : trained({head_table()})) end_gradient(name);
    gradient({"model.norm.weight"});
  }
  for (int64_t layer = part.first_layer + part.num_layers - 1; layer >= part.first_layer; --layer) {
    waits = deferred || (table_first && layer == 0);
    layer_backward(layer, linear, filling);
  }
  if (part.embedding) {
    gather_rows();
    gradient({"model.embed_tokens.weight"});
  }
  while (!filler_.empty()) gather_rows();
  if (!deferred) weight_gradients(number, micro);
}

void StateReplay::weight_gradients(int number, int micro) {
  for (const Names& names : deferred_[{number, micro}]) gradient(names);
  deferred_.erase({number, micro});
}

}  // namespace hearth
