#include "trainer/checkpoint/find_checkpoint.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {
namespace {

constexpr std::string_view kStepPrefix = "step_";
constexpr size_t kStepDigits = 8;

bool is_step_name(std::string_view name) {
  return name.size() >= kStepPrefix.size() + kStepDigits &&
         name.substr(0, kStepPrefix.size()) == kStepPrefix &&
         name.substr(kStepPrefix.size()).find_first_not_of("0123456789") == std::string_view::npos;
}

// This rank's share of one checkpoint: the manifest, and the digests of the files that fall to it.
// Returns the reason for a "no", or "".
std::string check_share(FileSystem& fs, ControlPlane& control, const std::string& path,
                        std::unique_ptr<CheckpointReader>& reader) {
  try {
    reader = CheckpointReader::open(fs, path, Verify::Manifest);
    const auto& files = reader->manifest().files;
    for (size_t i = 0; i < files.size(); ++i)
      if (static_cast<int>(i % static_cast<size_t>(control.world_size())) == control.rank())
        verify_file(fs, path, reader->manifest(), files[i]);
    return "";
  } catch (const Error& error) {
    return error.message();
  }
}

// All ranks try the candidates in the same order; the first unanimous one wins.
std::unique_ptr<CheckpointReader> first_unanimous(FileSystem& fs, ControlPlane& control, Log& log,
                                                  const std::vector<std::string>& candidates,
                                                  std::string& last_reason) {
  for (const auto& path : candidates) {
    std::unique_ptr<CheckpointReader> reader;
    const std::string reason = check_share(fs, control, path, reader);
    std::vector<std::string> reasons;
    if (control.vote(reason.empty(), reason, "ckpt.verify", &reasons)) return reader;
    last_reason = reasons.front();
    for (const auto& text : reasons)
      if (control.rank() == 0) log.warning("event=checkpoint_rejected path={} reason=\"{}\"", path, text);
  }
  return nullptr;
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  return fmt::format("step_{:08}", step);
}

std::vector<std::string> list_checkpoints_in(FileSystem& fs, const std::string& checkpoints_folder) {
  std::vector<std::string> names;
  if (!fs.is_directory(checkpoints_folder)) return names;
  for (const auto& name : fs.list(checkpoints_folder))
    if (is_step_name(name)) names.push_back(name);
  // Longer first: a run of 10^8 steps and more has nine digits.
  std::sort(names.begin(), names.end(),
            [](const auto& a, const auto& b) { return a.size() != b.size() ? a.size() > b.size() : a > b; });
  for (auto& name : names) name = checkpoints_folder + "/" + name;
  return names;
}
std::vector<std::string> list_checkpoints(FileSystem& fs, const std::string& run_folder) {
  return list_checkpoints_in(fs, run_folder + "/checkpoints");
}

bool is_checkpoint(FileSystem& fs, const std::string& path) {
  return fs.exists(path + "/" + std::string(kManifestName));
}
bool is_run_folder(FileSystem& fs, const std::string& path) {
  return fs.is_directory(path + "/checkpoints");
}

std::unique_ptr<CheckpointReader> find_checkpoint(FileSystem& fs, ControlPlane& control, Log& log,
                                                  const std::string& path) {
  // Rank 0 says what there is, so that all ranks walk the same list; a rank that sees another folder fails
  // its vote.
  std::string listing;
  if (control.rank() == 0) {
    if (is_checkpoint(fs, path))
      listing = "c" + path;
    else if (is_run_folder(fs, path))
      listing = "r";
    else if (is_step_name(path.substr(path.find_last_of('/') + 1)) && fs.is_directory(path))
      listing = "c" + path;  // a checkpoint that lost its manifest: let the reader say so
    else
      listing = "n";
    if (listing == "r")
      for (const auto& candidate : list_checkpoints(fs, path)) listing += candidate + '\0';
    else
      listing += '\0';
  }
  listing = control.broadcast(listing, "ckpt.list");
  HEARTH_CHECK(listing[0] != 'n', Usage,
               "{} is neither a checkpoint (no {}) nor a run folder (no checkpoints/)", path, kManifestName);
  std::vector<std::string> candidates;
  for (size_t at = 1; at < listing.size(); at = listing.find('\0', at) + 1)
    candidates.push_back(listing.substr(at, listing.find('\0', at) - at));
  if (candidates.empty()) return nullptr;
  std::string reason;
  auto reader = first_unanimous(fs, control, log, candidates, reason);
  HEARTH_CHECK(reader != nullptr, Corrupt,
               "no usable checkpoint in {}: {} tried, none verifies; the last reason: {}. Nothing was "
               "changed. Restore one "
               "from a backup, or start afresh in another folder with --resume never",
               path, candidates.size(), reason);
  return reader;
}

ModelPath resolve_model_path(FileSystem& fs, Log& log, const std::string& model) {
  HEARTH_CHECK(fs.is_directory(model), Usage,
               "{} is not a folder; MODEL is a checkpoint, a run folder or an HF directory", model);
  if (is_checkpoint(fs, model)) return {ModelPath::Kind::Checkpoint, model};
  if (is_run_folder(fs, model)) {
    const auto alone = make_single_control_plane();
    const auto reader = find_checkpoint(fs, *alone, log, model);
    HEARTH_CHECK(reader != nullptr, Corrupt, "run folder {} has no checkpoint yet", model);
    return {ModelPath::Kind::Checkpoint, reader->directory()};
  }
  HEARTH_CHECK(fs.exists(model + "/config.json"), Usage,
               "{} is neither a checkpoint (manifest.json), a run folder (checkpoints/) nor an HF directory "
               "(config.json)",
               model);
  return {ModelPath::Kind::HfDirectory, model};
}

}  // namespace hearth
