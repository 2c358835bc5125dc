#include "trainer/model/transformer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/dropout_op.h"
#include "kernels/gemm_op.h"
#include "kernels/rope_op.h"
#include "trainer/model/recompute.h"

namespace hearth {

Transformer::Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute)
    : Transformer(config, parameters, recompute, ModelPartition::whole(config).chunks[0], ModelContext{}) {}

Transformer::Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute,
                         const ModelChunk& chunk, const ModelContext& context, const Adapters* adapters)
    : config_(config),
      parameters_(parameters),
      adapters_(adapters),
      chunk_(chunk),
      context_(context),
      recompute_(recompute) {
  if (context_.events == nullptr) context_.events = &no_events_;
  if (chunk.embedding) embedding_ = vocab_weights("model.embed_tokens.weight");
  if (chunk.head) {
    head_ = vocab_weights(config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
    final_norm_ = norm_weights("model.norm.weight");
  }
  for (int64_t layer = chunk.first_layer; layer < chunk.first_layer + chunk.num_layers; ++layer)
    blocks_.push_back(block_weights(layer));
  anchor_ = at::zeros({}, at::TensorOptions(device()).dtype(at::kFloat)).set_requires_grad(true);
}

std::unique_ptr<BlockWeights> Transformer::block_weights(int64_t layer) {
  const std::string p = fmt::format("model.layers.{}.", layer), attn = p + "self_attn.",
                    mlp_prefix = p + "mlp.";
  const LocalHeads heads = local_heads(config_, context_.rows.size(), context_.rows.rank());
  auto block = std::make_unique<BlockWeights>();
  block->input_norm = norm_weights(p + "input_layernorm.weight");
  block->post_attention_norm = norm_weights(p + "post_attention_layernorm.weight");
  if (config_.qk_norm) {
    block->q_norm = norm_weights(attn + "q_norm.weight");
    block->k_norm = norm_weights(attn + "k_norm.weight");
  }
  block->qkv = linear_weights(attn + "q_proj", attn + "v_proj", config_.attention_bias);
  block->attention_output = linear_weights(attn + "o_proj", attn + "o_proj", config_.attention_output_bias);
  block->gate_up = linear_weights(mlp_prefix + "gate_proj", mlp_prefix + "up_proj", false);
  block->down = linear_weights(mlp_prefix + "down_proj", mlp_prefix + "down_proj", false);
  block->num_heads = heads.query;
  block->num_kv_heads = heads.kv;
  block->head_width = config_.head_width();
  block->recompute = recompute_;
  block->unit = 1 + layer;
  block->context = &context_;
  return block;
}

VocabWeights Transformer::vocab_weights(const std::string& name) const {
  const Parameter& p = parameters_.at(name);
  VocabWeights w;
  w.linear = LinearWeights{p.padded_weight, {}, p.padded_main_grad, {}, {parameters_.index(name)}};
  w.first_id = p.shard.box.offset[0];
  w.count = p.shard.box.extent[0];
  w.vocab_size = config_.vocab_size;
  w.unit = p.shard.unit;
  w.context = &context_;
  return w;
}

LinearWeights Transformer::linear_weights(const std::string& first, const std::string& last, bool has_bias) {
  LinearWeights w;
  w.weight = parameters_.fused_weight(first + ".weight", last + ".weight");
  w.main_grad = parameters_.fused_main_grad(first + ".weight", last + ".weight");
  w.lora = lora_weights(first + ".weight", last + ".weight");
  for (int64_t i = parameters_.index(first + ".weight"); i <= parameters_.index(last + ".weight"); ++i)
    w.parameters.push_back(i);
  if (has_bias) {
    w.bias = parameters_.fused_weight(first + ".bias", last + ".bias");
    w.bias_grad = parameters_.fused_main_grad(first + ".bias", last + ".bias");
    for (int64_t i = parameters_.index(first + ".bias"); i <= parameters_.index(last + ".bias"); ++i)
      w.parameters.push_back(i);
  }
  return w;
}

// The adapters on the matrices `first`..`last` of the store, which one GEMM computes.
std::optional<LoraWeights> Transformer::lora_weights(const std::string& first,
                                                     const std::string& last) const {
  if (adapters_ == nullptr) return std::nullopt;
  LoraWeights w{.rank = adapters_->shape.rank, .scale = adapters_->shape.scale()};
  const ParameterStore& store = adapters_->store;
  std::vector<std::string> names;  // that have adapters
  int64_t row = 0;
  for (int64_t i = parameters_.index(first); i <= parameters_.index(last); ++i) {
    const Parameter& matrix = parameters_.parameters()[static_cast<size_t>(i)];
    const std::string& name = matrix.spec.name;
    if (store.contains(lora_a_name(name))) {
      const Parameter& b = store.at(lora_b_name(name));
      names.push_back(name);
      w.parts.push_back({.first_row = row, .b = b.weight, .b_grad = b.main_grad});
      w.parameters.push_back(store.index(lora_a_name(name)));
      w.parameters.push_back(store.index(lora_b_name(name)));
    }
    row += matrix.shard.storage_rows;
  }
  if (names.empty()) return std::nullopt;
  if (drops()) {
    // The same for every layout: keyed by the matrix's name and places in the whole matrix.
    const Parameter& a = store.at(lora_a_name(names.front()));
    w.dropout = kernels::dropout_mask(kernels::counter_bits(adapters_->seed, xxh3_64(a.spec.name)),
                                      adapters_->dropout, a.spec.shape[1], a.shard.box.offset[1]);
  }
  w.a = store.fused_weight(lora_a_name(names.front()), lora_a_name(names.back()));
  w.a_grad = store.fused_main_grad(lora_a_name(names.front()), lora_a_name(names.back()));
  return w;
}

NormWeights Transformer::norm_weights(const std::string& name) {
  const Parameter& p = parameters_.at(name);
  return {p.weight, p.main_grad, config_.rms_norm_eps, {parameters_.index(name)}};
}

int64_t Transformer::uses_per_micro(int64_t parameter_index) const {
  const ParameterStore& trained = adapters_ != nullptr ? adapters_->store : parameters_;
  const ParameterShard& shard = trained.parameters()[static_cast<size_t>(parameter_index)].shard;
  const int64_t layer = shard.unit - 1;
  if (shard.unit == 0)
    return (chunk_.embedding ? 1 : 0) + (chunk_.head && config_.tie_word_embeddings ? 1 : 0);
  if (layer == config_.num_hidden_layers) return chunk_.head ? 1 : 0;
  return layer >= chunk_.first_layer && layer < chunk_.first_layer + chunk_.num_layers ? 1 : 0;
}

void Transformer::extend_rope_table(int64_t positions) {
  if (rope_table_.cos_PD2.defined() && rope_table_.cos_PD2.size(0) >= positions) return;
  const auto& s = config_.rope_scaling;
  const kernels::RopeFrequencies frequencies{
      .head_dim = config_.head_width(),
      .theta = config_.rope_theta,
      .scaling =
          s.rope_type == "llama3" ? kernels::RopeScalingKind::Llama3 : kernels::RopeScalingKind::Default,
      .factor = s.factor,
      .low_freq_factor = s.low_freq_factor,
      .high_freq_factor = s.high_freq_factor,
      .original_max_position_embeddings = s.original_max_position_embeddings};
  // Twice what is asked for, so that generation does not rebuild the table at every token.
  const int64_t rows = std::max(positions, std::min<int64_t>(config_.max_position_embeddings, 2 * positions));
  if (rope_table_.cos_PD2.defined()) former_rope_tables_.push_back(rope_table_);
  rope_table_ = kernels::rope_table(kernels::rope_inverse_frequencies(frequencies), rows, device());
}

RopeInput Transformer::rope_input(const ModelInput& input, int64_t first) {
  const auto& layout = input.layout;
  if (input.shared) {
    extend_rope_table(input.shared->sequence);
    return {rope_table_, input.positions_N};
  }
  extend_rope_table(first + layout.sequence);
  const at::Tensor positions =
      at::arange(first, first + layout.sequence, at::TensorOptions(device()).dtype(at::kLong));
  return {rope_table_, positions.repeat({layout.batch})};
}

at::Tensor Transformer::attend(const at::Tensor& qkv, const BlockWeights& w, const ModelInput& input) const {
  const auto core = [this, &w, input](const at::Tensor& rows) {
    if (!input.shared) return attention(rows, w.num_heads, w.num_kv_heads, input.layout, context_.attention);
    return context_attention(rows, w.num_heads, w.num_kv_heads, *input.shared, context_.sequence.method,
                             *context_.sequence.comm, block_kernels(input.layout, attention_target()));
  };
  return w.recompute.core_attention && qkv.requires_grad() ? rebuilt_in_backward(qkv, core) : core(qkv);
}

at::Tensor Transformer::block(const at::Tensor& x, const BlockWeights& w, const ModelInput& input,
                              const RopeInput& rope) const {
  const DropoutKeys& keys = input.dropout_keys;
  const AttentionInput in = attention_input(x, w, rope, keys);
  const at::Tensor attended = attend(in.qkv_NHW, w, input);
  at::Tensor out = mlp(attention_output(attended, in.residual_nD, w, keys), w, keys);
  observe(fmt::format("layers.{}", w.unit - 1), out);
  for (const StateTarget& target : input.states)
    if (target.layer == w.unit)
      out = with_state_loss(out, target, context_.rebuilding ? StateSum::Skip : StateSum::Add);
  return out;
}

at::Tensor Transformer::rebuilt_blocks(const at::Tensor& x_nD, size_t begin, size_t end,
                                       const ModelInput& input, const RopeInput& rope) {
  return rebuilt_in_backward(x_nD, [=, this](const at::Tensor& x_in) {
    context_.rebuilding = at::GradMode::is_enabled();
    at::Tensor x = x_in;
    for (size_t layer = begin; layer < end; ++layer) x = block(x, *blocks_[layer], input, rope);
    context_.rebuilding = false;
    return x;
  });
}

at::Tensor Transformer::forward(const at::Tensor& x_nD, const ModelInput& input, KvCache* cache) {
  const RopeInput rope = rope_input(input, cache != nullptr ? cache->length : 0);
  at::Tensor x = chunk_.embedding ? embedding(input.ids_N, embedding_, anchor_) : x_nD;
  const size_t count = blocks_.size(), step = static_cast<size_t>(recompute_.every_layers);
  if (chunk_.embedding) observe("embedding", x);
  if (cache != nullptr) {
    for (size_t layer = 0; layer < count; ++layer) x = cached_block(x, layer, input, rope, *cache);
    cache->length += input.layout.sequence;
  } else if (step > 0 && x.requires_grad()) {
    for (size_t begin = 0; begin < count; begin += step)
      x = rebuilt_blocks(x, begin, std::min(begin + step, count), input, rope);
  } else {
    for (const auto& w : blocks_) x = block(x, *w, input, rope);
  }
  if (!chunk_.head) return x;
  context_.before_forward(
      1 + config_.num_hidden_layers);  // the norm is of the head's unit, also where the head is not
  x = rms_norm(x, final_norm_, context_);
  observe("norm", x);
  return x;
}

AttentionTarget Transformer::attention_target() const {
  const LocalHeads heads = local_heads(config_, context_.rows.size(), context_.rows.rank());
  return {device(), scalar_type(), {heads.query, heads.kv, config_.head_width()}, context_.attention};
}

KvCache Transformer::make_cache(int64_t capacity, int64_t batch) const {
  const LocalHeads heads = local_heads(config_, context_.rows.size(), context_.rows.rank());
  return {chunk_.num_layers,
          batch,
          capacity,
          heads.kv,
          config_.head_width(),
          at::TensorOptions(device()).dtype(scalar_type())};
}

void Transformer::observe(const std::string& name, const at::Tensor& x_nD) const {
  if (context_.activation_observer && !context_.rebuilding) context_.activation_observer(name, x_nD.detach());
}

at::Tensor Transformer::cached_block(const at::Tensor& x, size_t layer, const ModelInput& input,
                                     const RopeInput& rope, KvCache& cache) const {
  const BlockWeights& w = *blocks_[layer];
  const AttentionInput in = attention_input(x, w, rope, {});
  const at::Tensor attended = attention_cached(in.qkv_NHW, w.num_heads, w.num_kv_heads, input.layout, cache,
                                               static_cast<int64_t>(layer));
  return mlp(attention_output(attended, in.residual_nD, w, {}), w, {});
}

// Logits of this rank's part of the vocabulary, padding included.
at::Tensor Transformer::head_rows(const at::Tensor& hidden_ND) const {
  return kernels::linear_forward_op(hidden_ND, head_.linear.weight, {});
}

at::Tensor Transformer::logits(const at::Tensor& hidden_nD) {
  context_.before_forward(head_.unit);
  const at::Tensor mine = head_rows(context_.rows.gather(hidden_nD, "tp.head.x").wait());
  context_.after_forward(head_.unit);
  if (context_.rows.size() == 1) return mine.narrow(1, 0, config_.vocab_size);
  const at::Tensor all = context_.rows.gather_all(mine, "tp.head.logits");  // [size, N, V / size]
  return all.transpose(0, 1).reshape({mine.size(0), -1}).narrow(1, 0, config_.vocab_size);
}

at::Tensor Transformer::logprobs(const at::Tensor& hidden_nD, const at::Tensor& targets_N) {
  context_.before_forward(head_.unit);
  const at::Tensor hidden = context_.rows.gather(hidden_nD, "tp.head.x").wait();
  const int64_t chunk =
      rows_per_logits_chunk(hidden.size(0), head_.linear.weight.size(0), hidden.element_size());
  at::Tensor out = at::zeros({hidden.size(0)}, hidden.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
    const int64_t count = std::min(chunk, hidden.size(0) - begin);
    const at::Tensor rows = head_rows(hidden.narrow(0, begin, count)),
                     targets = targets_N.narrow(0, begin, count);
    at::Tensor result = out.narrow(0, begin, count);
    if (context_.rows.size() == 1) {
      result.copy_(kernels::token_logprobs_op(rows, targets, head_.count));
    } else {
      const at::Tensor statistics =
          kernels::vocab_parallel_statistics_op(rows, targets, head_.first_id, head_.count);
      const auto loss = kernels::vocab_parallel_loss_op(context_.rows.gather_all(statistics, "tp.logprobs"),
                                                        targets, head_.vocab_size);
      result.copy_(loss.loss_N).neg_();
    }
  }
  context_.after_forward(head_.unit);
  return out;
}

}  // namespace hearth
