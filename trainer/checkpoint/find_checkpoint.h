// Finds the checkpoint to load: the newest that verifies, with all ranks of one mind. Rejected ones are
// logged with their reason, never silently skipped.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "base/log.h"
#include "parallel/control_plane.h"
#include "trainer/checkpoint/checkpoint_reader.h"

namespace hearth {

std::string checkpoint_name(int64_t step);  // "step_00001200"
// Paths of <run>/checkpoints/step_*, newest first, verified or not. Empty where there is no such folder.
std::vector<std::string> list_checkpoints(FileSystem& fs, const std::string& run_folder);
std::vector<std::string> list_checkpoints_in(FileSystem& fs, const std::string& checkpoints_folder);
bool is_checkpoint(FileSystem& fs, const std::string& path);  // holds a manifest.json
bool is_run_folder(FileSystem& fs, const std::string& path);  // holds checkpoints/

// Collective. `path` is a checkpoint or a run folder. Ranks share the reading of digests (file i by rank i
// mod world) and vote; the first unanimous checkpoint is opened. Throws on every rank: Error{Corrupt} (code
// 5) when there are checkpoints but none verifies, or `path` is a checkpoint that does not; Error{Usage} when
// `path` is neither. Null: a run folder without any checkpoint.
std::unique_ptr<CheckpointReader> find_checkpoint(FileSystem& fs, ControlPlane& control, Log& log,
                                                  const std::string& path);

// Resolves a MODEL argument for one process: a checkpoint, a run folder (its newest verified checkpoint), or
// an HF directory (config.json, no manifest.json). Throws Error{Usage} where it is none, Error{Corrupt} for
// no usable one.
struct ModelPath {
  enum class Kind { Checkpoint, HfDirectory } kind = Kind::HfDirectory;
  std::string path;
};
ModelPath resolve_model_path(FileSystem& fs, Log& log, const std::string& model);

}  // namespace hearth
