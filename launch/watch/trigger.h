// When waiting files become a run, and whether a candidate is as good as what is served: the two judgements
// of `hearth watch`, as functions of values. Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "launch/watch/watch_config.h"
#include "launch/watch/watch_state.h"

namespace hearth {

// What makes the waiting files a run now, for people and the journal; nothing where they wait on. Files that
// were too few once (`too_small_bytes`) wait until there are more.
std::optional<std::string> trigger_reason(const TriggerConfig& trigger,
                                          const std::vector<WaitingFile>& waiting, int64_t too_small_bytes,
                                          Clock& clock);

struct Verdict {
  bool promote = false;
  std::string reason;
};
// `scores` has the candidate (`run.name`) and the parent on `new_held_out`, and the candidate on each of
// `old`; `history` the releases so far on old data. On old data the candidate is measured against the best
// release so far on the same documents, not against the last one: small losses would add up.
Verdict judge(const WatchConfig& config, const WatchRun& run, const std::string& new_held_out,
              const std::vector<Score>& history);

}  // namespace hearth
