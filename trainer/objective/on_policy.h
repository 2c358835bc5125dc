// On-policy distillation (GKD: Agarwal et al. 2024, algorithm 1): of a share of the samples the targets are
// what the student itself writes, from the same prompts. Which samples, and every draw, is a pure function of
// (training.seed, number of the sample in the stream, position in the sample): the same for every layout and
// micro-batch size, and after a resume. Collective over the whole job. Borrows the groups. Not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "trainer/batch_generate.h"
#include "trainer/experiment_config.h"
#include "trainer/parallel_groups.h"

namespace hearth {

// A part of a document that the student writes anew: tokens [begin, end) of a sample, behind the prompt
// [document, begin).
struct Answer {
  int64_t document = 0, begin = 0, end = 0;
  bool operator==(const Answer&) const = default;
};
// Of each document with a trained token: the first run of trained tokens. Where nothing stands before it but
// one token, as in plain text, the prompt is the first half of the document's part in this sample. Pure.
std::vector<Answer> answers_of(const Sample& sample);
// Puts `written` in the place of the answer; of the document these tokens alone count as targets. At most as
// many as it replaces, at least one.
void replace_answer(Sample& sample, const Answer& answer, const std::vector<int32_t>& written);

class OnPolicyWriter {
 public:
  // Draws ids [0, vocab); a text ends at any of `eos_ids`.
  OnPolicyWriter(const ExperimentConfig& config, ParallelGroups& groups, int64_t vocab,
                 std::vector<int32_t> eos_ids);
  bool is_on_policy(const Sample& sample) const;
  // Rewrites and marks the samples that are.
  void rewrite(std::vector<Sample>& samples, InferenceModel& model) const;

 private:
  int64_t agreed(int64_t calls, at::Device device) const;
  void share_with_context(std::vector<std::vector<int32_t>>& texts, const std::vector<BatchPrompt>& prompts,
                          at::Device device) const;

  ParallelGroups& groups_;
  double share_;
  int64_t max_new_tokens_;  // of a document
  BatchGenerationOptions options_;
  CounterRng choice_, draws_;
};

}  // namespace hearth
