#include "trainer/evaluate.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"

namespace hearth {
namespace {

struct Window {
  size_t document;  // index into the pending documents
  int64_t begin, length;
};

// Runs the windows as one padded batch (the pad is behind the text, so causal attention never sees it).
void score_windows(InferenceModel& model, const std::vector<Window>& windows,
                   std::deque<DocumentScore>& documents) {
  int64_t longest = 0;
  for (const Window& w : windows) longest = std::max(longest, w.length);
  const auto batch = static_cast<int64_t>(windows.size());
  at::Tensor ids = at::zeros({batch * longest}, at::kLong), targets = at::empty({batch * longest}, at::kLong);
  auto* id = ids.data_ptr<int64_t>();
  auto* target = targets.data_ptr<int64_t>();
  std::fill(target, target + batch * longest, kernels::kIgnoreIndex);
  for (int64_t b = 0; b < batch; ++b) {
    const Window& w = windows[static_cast<size_t>(b)];
    const auto& text = documents[w.document].ids;
    for (int64_t i = 0; i < w.length; ++i) {
      id[b * longest + i] = text[static_cast<size_t>(w.begin + i)];
      if (i + 1 < w.length) target[b * longest + i] = text[static_cast<size_t>(w.begin + i + 1)];
    }
  }
  ModelInput input;
  input.ids_N = ids.to(model.device());
  input.layout.batch = batch;
  input.layout.sequence = longest;
  const at::Tensor logprobs =
      model.token_logprobs(input, targets.to(model.device())).to(at::kCPU, at::kFloat);
  const float* value = logprobs.data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b) {
    const Window& w = windows[static_cast<size_t>(b)];
    for (int64_t i = 0; i + 1 < w.length; ++i)
      documents[w.document].logprobs[static_cast<size_t>(w.begin + i + 1)] = value[b * longest + i];
  }
}

void add_to_totals(const DocumentScore& document, EvaluationTotals& totals) {
  ++totals.num_documents;
  for (size_t i = 0; i < document.ids.size(); ++i) {
    if (!document.logprobs[i] || (!document.loss_mask.empty() && document.loss_mask[i] == 0)) continue;
    totals.loss_sum -= *document.logprobs[i];
    ++totals.num_tokens;
    ++totals.target_counts[static_cast<size_t>(document.ids[i])];
  }
}

}  // namespace

double EvaluationTotals::loss() const {
  return loss_sum / static_cast<double>(num_tokens);
}

double EvaluationTotals::unigram_loss() const {
  double entropy = 0.0;
  for (const int64_t count : target_counts)
    if (count > 0)
      entropy -=
          static_cast<double>(count) * std::log(static_cast<double>(count) / static_cast<double>(num_tokens));
  return entropy / static_cast<double>(num_tokens);
}

EvaluationTotals evaluate(InferenceModel& model, const std::function<std::optional<ScoredDocument>()>& next,
                          const std::function<void(const DocumentScore&)>& on_document,
                          int64_t tokens_per_batch) {
  const int64_t context = model.config().max_position_embeddings, vocab = model.config().vocab_size;
  EvaluationTotals totals;
  totals.target_counts.assign(static_cast<size_t>(vocab), 0);
  std::deque<DocumentScore> documents;
  std::vector<Window> windows;
  const auto flush = [&] {
    if (!windows.empty()) score_windows(model, windows, documents);
    windows.clear();
    for (const auto& document : documents) {
      add_to_totals(document, totals);
      if (on_document) on_document(document);
    }
    documents.clear();
  };
  int64_t longest = 0;
  while (auto document = next()) {
    for (const int32_t id : document->ids)
      HEARTH_CHECK(id >= 0 && id < vocab, BadInput,
                   "document {}: token id {} is not below the model's vocabulary of {}",
                   totals.num_documents + static_cast<int64_t>(documents.size()), id, vocab);
    const auto length = static_cast<int64_t>(document->ids.size());
    documents.push_back(
        {std::move(*document), std::vector<std::optional<float>>(static_cast<size_t>(length))});
    for (int64_t begin = 0; begin < length; begin += context) {
      const int64_t count = std::min(context, length - begin);
      if (count < 2) continue;
      longest = std::max(longest, count);
      windows.push_back({documents.size() - 1, begin, count});
      if (static_cast<int64_t>(windows.size()) * longest >= tokens_per_batch) {
        score_windows(model, windows, documents);
        windows.clear();
        longest = 0;
      }
    }
    if (windows.empty()) flush();
  }
  flush();
  return totals;
}

}  // namespace hearth
