#include "launch/watch/trigger.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace hearth {
namespace {

const Score& score_of(const WatchRun& run, const std::string& model, const std::string& dataset) {
  const auto found = std::find_if(run.scores.begin(), run.scores.end(), [&](const Score& score) {
    return score.model == model && score.dataset == dataset;
  });
  HEARTH_ASSERT(found != run.scores.end());
  return *found;
}

}  // namespace

std::optional<std::string> trigger_reason(const TriggerConfig& trigger,
                                          const std::vector<WaitingFile>& waiting, int64_t too_small_bytes,
                                          Clock& clock) {
  if (waiting.empty()) return std::nullopt;
  int64_t bytes = 0, documents = 0, oldest = waiting.front().accepted_s;
  for (const auto& file : waiting) {
    bytes += file.bytes;
    documents += file.documents;
    oldest = std::min(oldest, file.accepted_s);
  }
  if (bytes <= too_small_bytes) return std::nullopt;
  if (trigger.min_new_bytes > 0 && bytes >= trigger.min_new_bytes)
    return fmt::format("volume: {} bytes wait, min_new_bytes is {}", bytes, trigger.min_new_bytes);
  if (trigger.min_new_documents > 0 && documents >= trigger.min_new_documents)
    return fmt::format("volume: {} documents wait, min_new_documents is {}", documents,
                       trigger.min_new_documents);
  const int64_t age = clock.now_s() - oldest;
  if (trigger.max_age_s > 0 && age >= trigger.max_age_s)
    return fmt::format("age: the oldest file waits for {} s, max_age_s is {}", age, trigger.max_age_s);
  for (const auto& hour : trigger.schedule)
    if (clock.latest_local(minute_of_day(hour)) >= oldest) return "schedule: " + hour;
  return std::nullopt;
}

Verdict judge(const WatchConfig& config, const WatchRun& run, const std::string& new_held_out,
              const std::vector<Score>& history) {
  const double candidate = score_of(run, run.name, new_held_out).loss;
  const double serving = score_of(run, run.parent, new_held_out).loss;
  const std::string numbers =
      fmt::format("new held-out loss {:.6f}, serving {} has {:.6f}", candidate, run.parent, serving);
  // Asked so that NaN fails.
  if (!(candidate <= serving + config.max_loss_increase))
    return {false,
            fmt::format("{}: more than max_loss_increase {} above", numbers, config.max_loss_increase)};
  std::string old_numbers;
  for (const auto& dataset : config.old_validation) {
    const Score& mine = score_of(run, run.name, dataset);
    const Score* best = nullptr;
    for (const auto* scores : {&history, &run.scores})
      for (const auto& score : *scores)
        if (score.model != run.name && score.dataset_digest == mine.dataset_digest &&
            (best == nullptr || score.loss < best->loss))
          best = &score;
    HEARTH_ASSERT(best != nullptr);
    const std::string text =
        fmt::format("{} loss {:.6f}, release {} had {:.6f}", dataset, mine.loss, best->model, best->loss);
    if (!(mine.loss <= best->loss + config.max_forgetting))
      return {false, fmt::format("{}: forgot more than max_forgetting {}", text, config.max_forgetting)};
    old_numbers += "; " + text;
  }
  return {true, numbers + old_numbers};
}

}  // namespace hearth
