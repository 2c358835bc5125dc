// The decoder-only transformer, whole or one pipeline chunk of it, on one rank of a tensor-parallel group:
// embedding, blocks, final norm, head, over the parameters of a ParameterStore. Letters as in
// block_functions.h; B batch, S sequence, N = B x S rows, batch-major. The graph of a forward pass refers to
// this object: keep it until backward is done. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/model/attention.h"
#include "trainer/model/block_functions.h"
#include "trainer/model/lora_adapters.h"
#include "trainer/model/parameter_store.h"
#include "trainer/model/state_loss.h"

namespace hearth {

// One batch as the model sees it. Under context parallelism: this rank's positions of every sequence.
struct ModelInput {
  at::Tensor ids_N;                     // int64, on the model's device
  AttentionLayout layout;               // who attends to whom; only batch and sequence where `shared` is set
  std::optional<ContextLayout> shared;  // of sequences that several ranks share
  at::Tensor positions_N;               // int64, on the model's device, where `shared` is set
  DropoutKeys dropout_keys;             // of training with dropout
  std::vector<StateTarget> states;      // terms of the loss on the layers of this rank
  int64_t rows() const { return ids_N.size(0); }
};

// Low-rank adapters as a Transformer takes them: trained in place of the model's own parameters, which are
// frozen then. Borrowed.
struct Adapters {
  ParameterStore& store;  // made of lora_shards()
  LoraShape shape;
  double dropout = 0;  // of their input, in training
  uint64_t seed = 0;   // of the dropout
};

class Transformer {
 public:
  // The whole model on one rank. Borrows `parameters`, which must outlive the model.
  Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute);
  // `chunk` of the model on a rank of a tensor-parallel group. Borrows what `context` names too. `adapters`:
  // null where there are none.
  Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute,
              const ModelChunk& chunk, const ModelContext& context, const Adapters* adapters = nullptr);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // How often the gradient of a trained parameter (of the adapters, where there are any) is reported in one
  // micro-batch by this chunk (2 for a tied embedding with both its uses here, 0 for a parameter of another
  // chunk).
  int64_t uses_per_micro(int64_t parameter_index) const;
  // Weight gradients go to `queue` from now on; null: they are computed at once.
  void defer_weight_gradients(WeightGradQueue* queue) { context_.deferred = queue; }
  // The same of the first layer alone, where the table's gradient travels too: that is then not the last one
  // of backward, and its sum over the ranks, the largest of all, has work beside it.
  void defer_first_layer(WeightGradQueue* queue) {
    if (context_.gradients_travel && embedding_.linear.main_grad.defined())
      context_.first_layer_deferred = queue;
  }
  // With rows split over a tensor-parallel group, weight gradients that need no rows of other ranks are
  // computed while backward gathers rows; the caller runs what is left of them behind it, and then gives
  // null.
  void fill_gathers(WeightGradQueue* filler) {
    context_.filler = context_.rows.splits_rows() ? filler : nullptr;
  }
  // See ModelContext::least_cut; for tests, whose products are small.
  void cut_products_from(int64_t outputs) { context_.least_cut = outputs; }
  // See ModelContext::activation_observer.
  void observe_activations(std::function<void(const std::string&, const at::Tensor&)> observer) {
    context_.activation_observer = std::move(observer);
  }
  // Rows that this rank holds between linears: the first dimension of what chunks pass on.
  int64_t local_rows(int64_t rows) const { return context_.rows.local_rows(rows); }

  // Takes effect with the next forward pass; returns what was before. Not between a forward pass and its
  // backward.
  SequenceParallel set_sequence_parallel(SequenceParallel mode) { return context_.rows.set_mode(mode); }
  // For `batch` sequences of up to `capacity` tokens through this chunk.
  KvCache make_cache(int64_t capacity, int64_t batch) const;

  // Before a wait for the chunk's input, or for the gradient of its output: what comes after the wait is told
  // to the parameters' manager.
  void expect_forward() const { context_.events->expect_use(chunk_.embedding ? 0 : 1 + chunk_.first_layer); }
  void expect_backward() const { context_.events->expect_use(chunk_.first_layer + chunk_.num_layers); }

  // One chunk: [n, D] in (undefined for a chunk with the embedding) -> [n, D] out, after the final norm for a
  // chunk with the head.
  at::Tensor forward(const at::Tensor& x_nD, const ModelInput& input, KvCache* cache = nullptr);
  // [n, D] after the final norm, for the whole model in one chunk.
  at::Tensor hidden_states(const ModelInput& input, KvCache* cache = nullptr) {
    return forward({}, input, cache);
  }
  // [rows, vocab_size] in the model's dtype, for inference.
  at::Tensor logits(const at::Tensor& hidden_nD);
  // fp32 [N]: log p(target) per row, 0 where the target is -100. Inference only; logits exist a chunk of rows
  // at a time.
  at::Tensor logprobs(const at::Tensor& hidden_nD, const at::Tensor& targets_N);
  // Loss of a micro-batch: see linear_cross_entropy.
  LossResult loss(const ModelInput& input, const at::Tensor& targets_N, double scale) {
    return linear_cross_entropy(hidden_states(input), targets_N, head_, scale);
  }
  // For objectives: the table of the head, and the logits of this rank's columns for whole rows [N, D].
  const VocabWeights& head() const { return head_; }
  at::Tensor head_rows(const at::Tensor& hidden_ND) const;

  bool drops() const { return adapters_ != nullptr && adapters_->dropout > 0; }
  const ModelConfig& config() const { return config_; }
  const ModelChunk& chunk() const { return chunk_; }
  const ModelContext& context() const { return context_; }
  at::Device device() const { return parameters_.device(); }
  at::ScalarType scalar_type() const { return parameters_.scalar_type(); }
  // For make_attention_layout.
  AttentionTarget attention_target() const;

 private:
  LinearWeights linear_weights(const std::string& first, const std::string& last, bool has_bias);
  NormWeights norm_weights(const std::string& name);
  VocabWeights vocab_weights(const std::string& name) const;
  std::unique_ptr<BlockWeights> block_weights(int64_t layer);
  void extend_rope_table(int64_t positions);
  RopeInput rope_input(const ModelInput& input, int64_t first);
  at::Tensor attend(const at::Tensor& qkv, const BlockWeights& w, const ModelInput& input) const;
  at::Tensor block(const at::Tensor& x, const BlockWeights& w, const ModelInput& input,
                   const RopeInput& rope) const;
  void observe(const std::string& name, const at::Tensor& x_nD) const;
  at::Tensor cached_block(const at::Tensor& x, size_t layer, const ModelInput& input, const RopeInput& rope,
                          KvCache& cache) const;
  // Blocks [begin, end) of this chunk, of which only the input is kept.
  at::Tensor rebuilt_blocks(const at::Tensor& x_nD, size_t begin, size_t end, const ModelInput& input,
                            const RopeInput& rope);

  std::optional<LoraWeights> lora_weights(const std::string& first, const std::string& last) const;

  ModelConfig config_;
  ParameterStore& parameters_;
  const Adapters* adapters_;
  ModelChunk chunk_;
  ParameterEvents no_events_;
  ModelContext context_;
  RecomputeChoice recompute_;
  VocabWeights embedding_, head_;
  NormWeights final_norm_;
  std::vector<std::unique_ptr<BlockWeights>> blocks_;
  kernels::RopeTable rope_table_;                       // grown on demand
  std::vector<kernels::RopeTable> former_rope_tables_;  // smaller ones: a captured CUDA graph may read them
  at::Tensor anchor_;  // requires grad; ties the embedding lookup into the graph
};

}  // namespace hearth
