#include "trainer/checkpoint/retention.h"

#include <algorithm>

#include "base/error.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/find_checkpoint.h"

namespace hearth {
namespace {

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}
std::string base_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

bool verifies(FileSystem& fs, Log& log, const std::string& path) {
  try {
    CheckpointReader::open(fs, path, Verify::Everything);
    return true;
  } catch (const Error& error) {
    log.warning("event=checkpoint_rejected path={} reason=\"{}\"", path, error.message());
    return false;
  }
}

}  // namespace

void write_latest_hint(FileSystem& fs, const std::string& folder, const std::string& checkpoint_path) {
  fs.write_atomically(folder + "/latest", base_name(checkpoint_path) + "\n");
}

void prune_checkpoints(FileSystem& fs, Log& log, const PruneOptions& options,
                       std::set<std::string>& verified) {
  if (options.keep_latest_k == 0) return;
  const int64_t keep = std::max<int64_t>(options.keep_latest_k, 2);
  int64_t good = 0;
  for (const auto& path : list_checkpoints_in(fs, options.folder)) {
    if (good < keep) {
      if (verified.count(path) == 0 && verifies(fs, log, path)) verified.insert(path);
      good += static_cast<int64_t>(verified.count(path));
      continue;
    }
    const std::string dead = fmt::format("{}/dead.{}.{}", options.folder, base_name(path), options.attempt);
    fs.rename(path, dead);  // first the name: a half-deleted checkpoint must not look like one
    fs.sync_directory(options.folder);
    verified.erase(path);
    if (options.at_point) options.at_point("ckpt.pruning");
    fs.remove_all(dead);
    log.info("event=checkpoint_pruned path={}", path);
  }
}

void remove_leftovers(FileSystem& fs, Log& log, const std::string& folder) {
  for (const auto& name : fs.list(folder)) {
    if (!starts_with(name, "tmp.") && !starts_with(name, "dead.") && name != "latest.tmp") continue;
    log.info("event=leftover_removed path={}/{}", folder, name);
    fs.remove_all(folder + "/" + name);
  }
}

void retire_checkpoint(FileSystem& fs, Log& log, const std::string& folder,
                       const std::string& checkpoint_path, int64_t attempt) {
  std::string aside = fmt::format("{}/aside.{}.{}", folder, base_name(checkpoint_path), attempt);
  while (fs.exists(aside)) aside += "x";
  fs.rename(checkpoint_path, aside);
  fs.sync_directory(folder);
  log.warning("event=checkpoint_set_aside path={} to={}", checkpoint_path, aside);
}

void retire_newer_checkpoints(FileSystem& fs, Log& log, const std::string& run_folder, int64_t step,
                              int64_t attempt) {
  const std::string limit = checkpoint_name(step);
  for (const auto& path : list_checkpoints(fs, run_folder))
    if (base_name(path) > limit) retire_checkpoint(fs, log, run_folder + "/checkpoints", path, attempt);
}

}  // namespace hearth
