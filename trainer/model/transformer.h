// The decoder-only transformer: embedding, blocks, final norm, head, over the parameters of a ParameterStore.
// Letters as in block_functions.h; B batch, S sequence, N = B x S rows, batch-major.
// The graph of a forward pass refers to this object: keep it until backward is done. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/model/attention.h"
#include "trainer/model/block_functions.h"
#include "trainer/model/parameter_store.h"

namespace hearth {

// One batch as the model sees it.
struct ModelInput {
  at::Tensor ids_N;        // int64, on the model's device
  AttentionLayout layout;  // who attends to whom
};

class Transformer {
 public:
  // Borrows `parameters`, which must outlive the model.
  Transformer(const ModelConfig& config, ParameterStore& parameters, RecomputeChoice recompute);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Called when a parameter's gradient of a micro-batch is complete; see uses_per_micro(). Empty to stop.
  void set_gradient_ready(GradientReady ready) { gradient_ready_ = std::move(ready); }
  // How often gradient_ready is called for a parameter in one micro-batch (2 for a tied embedding).
  int64_t uses_per_micro(int64_t parameter_index) const;

  // [N, D] after the final norm.
  at::Tensor hidden_states(const ModelInput& input, KvCache* cache = nullptr);
  // [rows, vocab_size] in the model's dtype, for inference.
  at::Tensor logits(const at::Tensor& hidden_ND);
  // fp32 [N]: log p(target) per row, 0 where the target is -100. Inference only; logits exist a chunk of rows at a time.
  at::Tensor token_logprobs(const ModelInput& input, const at::Tensor& targets_N);
  // Loss of a micro-batch: see linear_cross_entropy.
  LossResult loss(const ModelInput& input, const at::Tensor& targets_N, double scale);

  const ModelConfig& config() const { return config_; }
  at::Device device() const { return parameters_.at("model.embed_tokens.weight").weight.device(); }
  at::ScalarType scalar_type() const { return parameters_.at("model.embed_tokens.weight").weight.scalar_type(); }

 private:
  LinearWeights linear_weights(const std::string& first, const std::string& last, bool has_bias);
  NormWeights norm_weights(const std::string& name);
  void extend_rope_table(int64_t positions);

  ModelConfig config_;
  ParameterStore& parameters_;
  GradientReady gradient_ready_;
  LinearWeights embedding_, head_;
  NormWeights final_norm_;
  std::vector<std::unique_ptr<BlockWeights>> blocks_;
  kernels::RopeTable rope_table_;  // grown on demand
  at::Tensor anchor_;              // requires grad; ties the embedding lookup into the graph
};

}  // namespace hearth
