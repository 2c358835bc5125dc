// The resume contract: what may differ between the run that wrote a checkpoint and the run that continues it.
// Every key is frozen (another run: refused), may change (printed), or must be confirmed (--confirm
// section.key). Pure functions, thread-safe.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/config_flatten.h"

namespace hearth {

// One side of the comparison.
struct RunDescription {
  std::vector<FlatKey> config;   // resolved; before: as stored in state.json (keys and values are enough)
  std::string data_digest;       // of all training shards
  std::string data_text;         // for people: "shards/zh  41 shards, 88,120,331,264 tokens"
  std::string tokenizer_digest;  // empty: none
  std::string mesh;              // "pp=1 dp=4 cp=1 ep=1 tp=1"
};

struct ResumeChange {
  std::string key;  // of the configuration, or "data contents", "tokenizer", "mesh"
  std::string before, now;
  OnResume on_resume = OnResume::Frozen;
  bool confirmed = false;  // MustConfirm keys that --confirm named
  bool operator==(const ResumeChange&) const = default;
  bool refused() const {
    return on_resume == OnResume::Frozen || (on_resume == OnResume::MustConfirm && !confirmed);
  }
};

// All differences, configuration first. Rules beside the keys' own classes:
//   * data digest differs: "data contents", MustConfirm by --confirm data.train (the ledger goes on);
//   * tokenizer digest differs: "tokenizer", Frozen: the ids mean something else;
//   * mesh differs: "mesh", MayChange; losses then agree to rounding, no longer bit for bit.
// `confirmed` holds the keys of --confirm; naming a key that did not change is not an error.
std::vector<ResumeChange> compare_for_resume(const RunDescription& before, const RunDescription& now,
                                             std::span<const std::string> confirmed);

// One line per change: class, key, before -> now, and what follows from it. Empty text for no change.
std::string describe_changes(std::span<const ResumeChange> changes);

// Throws Error{Config} that names every refused change, says that the checkpoint is whole, and what to do.
void require_resumable(std::span<const ResumeChange> changes, const std::string& checkpoint_path);

}  // namespace hearth
