// A model that answers, under any layout: what eval, generate, export and the samples of a training run
// compute with. The ranks of one data-parallel replica make the same calls and all get the results; replicas
// know nothing of each other, unless parameters are sharded over them (zero_stage 3): then they make as many
// calls of the same sizes. Without a graph. Borrows everything. Not thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "trainer/pipeline/pipeline_executor.h"

namespace hearth {

// The most likely next tokens of rows, [N, k], most likely first, and the mass of all others, [N].
struct TopLogprobs {
  at::Tensor ids_NK;       // int32
  at::Tensor logprobs_NK;  // fp32
  at::Tensor tail_mass_N;  // fp32
};

// How the next tokens of B sequences are chosen, of softmax(logits / temperature) over the first `vocab` ids.
struct TokenDraw {
  double temperature = 1.0;  // 0 = greedy: the lowest id among equals
  int64_t vocab = 0;
  std::vector<double> uniform;  // [B] in [0, 1): each decides for one sequence
};

class InferenceModel {
 public:
  // The whole model on this rank.
  explicit InferenceModel(Transformer& whole);
  // `chunks`: of this pipeline rank, as `executor` has them. `pipeline`: the ranks of all stages in order;
  // null for one.
  InferenceModel(PipelineExecutor& executor, std::vector<Transformer*> chunks, Comm* pipeline);
  ~InferenceModel();

  // fp32 [N]: log p(target) per row, 0 where the target is -100.
  at::Tensor token_logprobs(const ModelInput& input, const at::Tensor& targets_N);
  // Of softmax(logits / temperature) over the first `vocab` ids, computed in fp32.
  TopLogprobs top_logprobs(const ModelInput& input, int64_t k, double temperature, int64_t vocab);
  // Keys and values of this rank's layers and heads, for `batch` sequences of up to `capacity` tokens.
  std::vector<KvCache> make_caches(int64_t capacity, int64_t batch = 1) const;
  // Feeds the tokens of one sequence behind the caches (null: nothing is kept). fp32 [last, vocab_size] on
  // the host: logits of the last `last` of them.
  at::Tensor logits(const std::vector<int64_t>& ids, std::vector<KvCache>* caches, int64_t last);
  // Feeds as many tokens of each of `batch` sequences behind the caches, [batch, tokens], and draws the next
  // one of each on the device, [batch]. Weights of the draw are multiples of 2^-40 of the largest one, whose
  // sums are exact: nothing depends on the order of a sum. Of logits that are not finite comes some id below
  // `vocab`.
  std::vector<int32_t> next_tokens(const std::vector<int64_t>& ids, int64_t batch,
                                   std::vector<KvCache>& caches, const TokenDraw& draw);

  const ModelConfig& config() const { return chunks_[0]->config(); }
  at::Device device() const { return chunks_[0]->device(); }

 private:
  at::Tensor from_last_stage(at::Tensor values, std::string_view site);
  ModelInput input_of(const std::vector<int64_t>& ids, int64_t batch) const;

  std::unique_ptr<PipelineLinks> no_links_;  // of the executor below
  std::unique_ptr<PipelineExecutor> own_executor_;
  PipelineExecutor& executor_;
  std::vector<Transformer*> chunks_;
  Comm* pipeline_ = nullptr;
};

}  // namespace hearth
