#include "trainer/checkpoint/resume_contract.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {
namespace {

// A key of data.* or a section may be confirmed as a whole: --confirm data covers data.train.
bool is_confirmed(const std::string& key, std::span<const std::string> confirmed) {
  return std::any_of(confirmed.begin(), confirmed.end(), [&](const std::string& name) {
    return key == name ||
           (key.size() > name.size() && key.substr(0, name.size()) == name && key[name.size()] == '.');
  });
}

std::string_view class_text(const ResumeChange& change) {
  switch (change.on_resume) {
    case OnResume::Frozen:
      return "frozen";
    case OnResume::MayChange:
      return "allowed";
    case OnResume::MustConfirm:
      return change.confirmed ? "confirmed" : "to confirm";
  }
  return "?";
}

std::string or_none(const std::string& value) {
  return value.empty() ? "(none)" : value;
}

std::string consequence(const ResumeChange& change) {
  if (change.key == "mesh") return "  (losses agree to rounding from here on, no longer bit for bit)";
  if (change.key == "data contents") return "  (the ledger goes on: nothing is repeated, nothing skipped)";
  return "";
}

// What the user types to accept the change.
std::string confirm_key(const ResumeChange& change) {
  return change.key == "data contents" ? "data.train" : change.key;
}

}  // namespace

std::vector<ResumeChange> compare_for_resume(const RunDescription& before, const RunDescription& now,
                                             std::span<const std::string> confirmed) {
  std::vector<ResumeChange> changes;
  for (const auto& change : resume_diff(before.config, now.config))
    changes.push_back({change.key, change.old_value, change.new_value, change.on_resume,
                       change.on_resume == OnResume::MustConfirm && is_confirmed(change.key, confirmed)});
  if (before.data_digest != now.data_digest)
    changes.push_back({"data contents", fmt::format("{}, digest {}", before.data_text, before.data_digest),
                       fmt::format("{}, digest {}", now.data_text, now.data_digest), OnResume::MustConfirm,
                       is_confirmed("data.train", confirmed)});
  if (before.tokenizer_digest != now.tokenizer_digest)
    changes.push_back({"tokenizer", before.tokenizer_digest, now.tokenizer_digest, OnResume::Frozen, false});
  if (before.mesh != now.mesh) changes.push_back({"mesh", before.mesh, now.mesh, OnResume::MayChange, false});
  return changes;
}

std::string describe_changes(std::span<const ResumeChange> changes) {
  std::string text;
  for (const auto& change : changes)
    text += fmt::format("  {:<10} {}: {} -> {}{}\n", class_text(change), change.key, or_none(change.before),
                        or_none(change.now), consequence(change));
  return text;
}

void require_resumable(std::span<const ResumeChange> changes, const std::string& checkpoint_path) {
  std::vector<ResumeChange> refused;
  for (const auto& change : changes)
    if (change.refused()) refused.push_back(change);
  if (refused.empty()) return;
  bool frozen = false;
  std::string confirm;
  for (const auto& change : refused) {
    frozen |= change.on_resume == OnResume::Frozen;
    const std::string word = "--confirm " + confirm_key(change);
    if (change.on_resume == OnResume::MustConfirm && confirm.find(word) == std::string::npos)
      confirm += (confirm.empty() ? "" : " ") + word;
  }
  const bool only_data = refused.size() == 1 && refused[0].key == "data contents";
  std::string message =
      only_data ? "cannot resume: the training data is not the data of the checkpoint"
                : fmt::format("cannot resume: {} of {} changes {} not allowed in a run that goes on",
                              refused.size(), changes.size(), refused.size() == 1 ? "is" : "are");
  message += fmt::format("\n  checkpoint   {}  (complete, digests match: nothing is lost)", checkpoint_path);
  for (const auto& change : refused)
    message += fmt::format("\n  {:<12} {}\n    was        {}\n    this job   {}", class_text(change),
                           change.key, or_none(change.before), or_none(change.now));
  message += "\n  do one of    ";
  if (frozen)
    message += "restore the old value  |  model.init_from: this checkpoint (a new run from its weights)";
  else
    message += "restore what was there  |  " + confirm;
  message += "  |  --resume never";
  throw Error(ErrorKind::Config, message);
}

}  // namespace hearth
