// Log-probabilities of given text under a model: the numbers behind `hearth eval`.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "trainer/inference_model.h"

namespace hearth {

struct ScoredDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss_mask;  // 1 = the token counts in the totals; empty: every token does
};

// One document's result: logprobs[i] is log p(ids[i] | the tokens before it in its window), in nats; empty
// for the first token of each window of max_position_embeddings tokens.
struct DocumentScore : ScoredDocument {
  std::vector<std::optional<float>> logprobs;
};

struct EvaluationTotals {
  double loss_sum = 0.0;   // nats
  int64_t num_tokens = 0;  // scored targets that count
  int64_t num_documents = 0;
  std::vector<int64_t> target_counts;  // per id, of the scored targets
  double loss() const;                 // mean per scored token; NaN without any
  double unigram_loss() const;         // the same tokens under their own unigram distribution (its entropy)
};

// Scores documents one after another; batches windows so that about `tokens_per_batch` tokens go through at
// once. `next` returns the next document or nothing at the end; `on_document` sees each result, in order.
EvaluationTotals evaluate(InferenceModel& model, const std::function<std::optional<ScoredDocument>()>& next,
                          const std::function<void(const DocumentScore&)>& on_document,
                          int64_t tokens_per_batch = 8192);

}  // namespace hearth
