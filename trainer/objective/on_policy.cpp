#include "trainer/objective/on_policy.h"

#include <ATen/ops/tensor.h>

#include <algorithm>

#include "base/error.h"
#include "parallel/tensor/upload.h"

namespace hearth {

std::vector<Answer> answers_of(const Sample& sample) {
  const auto sequence = static_cast<int64_t>(sample.loss_mask.size());
  const auto trained = [&](int64_t token) { return sample.loss_mask[static_cast<size_t>(token - 1)] != 0; };
  std::vector<Answer> answers;
  for (size_t i = 0; i < sample.document_starts.size(); ++i) {
    const int64_t document = sample.document_starts[i];
    // Targets of positions [document, stop): the token at a border is never one (BorderTargets::Skip).
    const int64_t stop = i + 1 < sample.document_starts.size() ? sample.document_starts[i + 1] : sequence;
    int64_t begin = document + 1;
    while (begin <= stop && !trained(begin)) ++begin;
    int64_t end = begin;
    while (end <= stop && trained(end)) ++end;
    if (begin == end) continue;
    if (begin == document + 1) begin = document + (end - document + 1) / 2;
    answers.push_back({document, begin, end});
  }
  return answers;
}

void replace_answer(Sample& sample, const Answer& answer, const std::vector<int32_t>& written) {
  const auto count = static_cast<int64_t>(written.size());
  HEARTH_REQUIRE(count > 0 && count <= answer.end - answer.begin, "{} tokens in the place of {}", count,
                 answer.end - answer.begin);
  std::copy(written.begin(), written.end(), sample.tokens.begin() + answer.begin);
  const auto next = std::upper_bound(sample.document_starts.begin(), sample.document_starts.end(),
                                     static_cast<int32_t>(answer.document));
  const auto mask = sample.loss_mask.begin();
  std::fill(mask + answer.document,
            next == sample.document_starts.end() ? sample.loss_mask.end() : mask + *next, uint8_t{0});
  std::fill(mask + answer.begin - 1, mask + answer.begin - 1 + count, uint8_t{1});
}

OnPolicyWriter::OnPolicyWriter(const ExperimentConfig& config, ParallelGroups& groups, int64_t vocab,
                               std::vector<int32_t> eos_ids)
    : groups_(groups),
      share_(config.objective.on_policy_share),
      max_new_tokens_(config.objective.on_policy_max_new_tokens),
      // As many tokens are in the caches as in the micro-batch, which has room for their activations.
      options_{.temperature = config.objective.on_policy_temperature,
               .vocab = vocab,
               .eos_ids = std::move(eos_ids),
               .tokens_per_group = config.training.micro_batch_size * config.data.seq_length},
      choice_(static_cast<uint64_t>(config.training.seed), "on_policy.choice"),
      draws_(static_cast<uint64_t>(config.training.seed), "on_policy.draws") {}

bool OnPolicyWriter::is_on_policy(const Sample& sample) const {
  return choice_.uniform(static_cast<uint64_t>(sample.number)) < share_;
}

// Under zero_stage 3 each call gathers weights over replicas, and all stages of a replica make the same.
int64_t OnPolicyWriter::agreed(int64_t calls, at::Device device) const {
  at::Tensor most = at::tensor({static_cast<double>(calls)}, at::kDouble).to(device);
  groups_.everyone().all_reduce(most.data_ptr(), 1, DType::F64, ReduceOp::Max, "on_policy.calls")->wait();
  return static_cast<int64_t>(most.item<double>());
}

// The ranks that share a sequence computed the same texts; one speaks for all, so that no difference in
// rounding can part their tokens.
void OnPolicyWriter::share_with_context(std::vector<std::vector<int32_t>>& texts,
                                        const std::vector<BatchPrompt>& prompts, at::Device device) const {
  if (!groups_.context || texts.empty()) return;
  constexpr int32_t kNothing = -1;
  std::vector<int32_t> flat;
  for (size_t i = 0; i < texts.size(); ++i) {
    flat.insert(flat.end(), texts[i].begin(), texts[i].end());
    flat.resize(flat.size() + static_cast<size_t>(prompts[i].max_new_tokens) - texts[i].size(), kNothing);
  }
  at::Tensor values = upload(flat, device);
  groups_.context->broadcast(values.data_ptr(), values.numel(), DType::I32, /*root=*/0, "on_policy.texts")
      ->wait();
  values = values.to(at::kCPU);
  const auto* value = values.const_data_ptr<int32_t>();
  for (size_t i = 0; i < texts.size(); value += prompts[i++].max_new_tokens)
    texts[i].assign(value, std::find(value, value + prompts[i].max_new_tokens, kNothing));
}

void OnPolicyWriter::rewrite(std::vector<Sample>& samples, InferenceModel& model) const {
  struct Place {
    Sample* sample;
    Answer answer;
  };
  std::vector<Place> places;
  std::vector<BatchPrompt> prompts;
  for (Sample& sample : samples) {
    sample.on_policy = is_on_policy(sample);
    if (!sample.on_policy) continue;
    require_known_ids(sample, model.config().vocab_size);
    for (const Answer& answer : answers_of(sample)) {
      const auto token = sample.tokens.begin();
      places.push_back({&sample, answer});
      prompts.push_back({.ids = {token + answer.document, token + answer.begin},
                         .max_new_tokens = std::min(answer.end - answer.begin, max_new_tokens_),
                         .first_draw = static_cast<uint64_t>(sample.number) * sample.tokens.size() +
                                       static_cast<uint64_t>(answer.begin)});
    }
  }
  const int64_t calls = agreed(generation_calls(prompts, options_), model.device());
  auto texts = generate_batch(model, prompts, options_, draws_, calls);
  share_with_context(texts, prompts, model.device());
  for (size_t i = 0; i < places.size(); ++i) replace_answer(*places[i].sample, places[i].answer, texts[i]);
}

}  // namespace hearth
