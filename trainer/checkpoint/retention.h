// What stays in <run>/checkpoints: pruning, leftovers, the `latest` hint. Rank 0 only, with the run lock
// held. Names there: step_NNNNNNNN (committed), tmp.* and dead.* (leftovers, removed at the next start),
// aside.* (a checkpoint that another one replaced or that went bad; kept for people, never loaded, never
// removed by us), latest.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>

#include "base/file_system.h"
#include "base/log.h"

namespace hearth {

// File `latest` = the checkpoint's name. A hint for people and scripts; no decision of Hearth reads it.
void write_latest_hint(FileSystem& fs, const std::string& folder, const std::string& checkpoint_path);

struct PruneOptions {
  std::string folder;
  int64_t keep_latest_k = 3;  // 0 = all; less than 2 counts as 2 (contract C2)
  int64_t attempt = 1;
  std::function<void(std::string_view point)>
      at_point;  // ckpt.pruning: after the rename to dead.*, before deleting
};
// Keeps the newest checkpoints that verify and removes what is older. `verified` holds paths whose bytes this
// program has read back; others are read once and added. A checkpoint that does not verify is not counted
// and, where newer than the kept ones, not touched.
void prune_checkpoints(FileSystem& fs, Log& log, const PruneOptions& options,
                       std::set<std::string>& verified);

// Removes tmp.* and dead.* that a killed attempt left.
void remove_leftovers(FileSystem& fs, Log& log, const std::string& folder);

// Renames a checkpoint to aside.<name>.<attempt>, so that it is neither loaded nor counted.
void retire_checkpoint(FileSystem& fs, Log& log, const std::string& folder,
                       const std::string& checkpoint_path, int64_t attempt);

// For a run that goes on from an older checkpoint of its own folder (--resume CHECKPOINT): the newer ones
// belong to another history and would be found first at the next start. Retires them.
void retire_newer_checkpoints(FileSystem& fs, Log& log, const std::string& run_folder, int64_t step,
                              int64_t attempt);

}  // namespace hearth
