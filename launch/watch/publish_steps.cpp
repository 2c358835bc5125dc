// Steps that end a run: promotion, rejection, pruning; and the first release.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "launch/watch/watch_loop.h"

namespace hearth {
namespace {

std::vector<std::string> digests_of(const std::vector<WaitingFile>& files) {
  std::vector<std::string> digests;
  for (const auto& file : files) digests.push_back(file.digest);
  return digests;
}

LineageEvent files_json(const std::vector<FileDigest>& files) {
  LineageEvent out = LineageEvent::array();
  for (const auto& file : files)
    out.push_back({{"name", file.name}, {"digest", file.digest}, {"bytes", file.bytes}});
  return out;
}

LineageEvent scores_json(const std::vector<Score>& scores) {
  LineageEvent out = LineageEvent::array();
  for (const auto& score : scores)
    out.push_back(
        {{"model", score.model}, {"dataset", score.dataset}, {"loss", score.loss}, {"tokens", score.tokens}});
  return out;
}

bool is_release_name(const std::string& name) {
  return name.size() >= 4 && name.find_first_not_of("0123456789") == std::string::npos;
}

}  // namespace

// base_model, in the form that every later release has.
void WatchLoop::release_base() {
  const std::string zero = release_name(0), output = path("releases", zero);
  const std::string served = release_served(c_.fs, c_.config.serving, c_.config.workspace + "/releases");
  HEARTH_REQUIRE(served.empty() || served == zero,
                 "watch.serving: {} points to release {} of another history", c_.config.serving, served);
  if (!c_.fs.exists(output)) {
    Step step{
        .name = "export", .words = {"export", c_.config.base_model, "--output", output}, .launched = true};
    step.words.insert(step.words.end(), c_.config.export_arguments.begin(), c_.config.export_arguments.end());
    run_step(step);
  }
  point("watch.base.exported");
  const auto files = digest_folder(c_.fs, output);
  c_.fs.sync_directory(c_.config.workspace + "/releases");
  point_serving_to(c_.fs, c_.config.serving, output, [this](std::string_view name) { point(name); });
  point("watch.base.linked");
  WatchState next = state();
  next.serving = zero;
  next.phase = WatchPhase::Collect;
  commit(std::move(next), {{{"event", "base_released"},
                            {"release", zero},
                            {"model", c_.config.base_model},
                            {"release_files", files_json(files)}}});
}

// The candidate becomes a release by a rename, the release is served by a rename, and both are recorded last.
void WatchLoop::promote() {
  const WatchRun& run = *state().run;
  const std::string candidate = path("candidates", run.name), release = path("releases", run.name);
  if (c_.fs.exists(candidate)) {
    const LineageEvent card{{"release", run.name},
                            {"parent", run.parent},
                            {"checkpoint", run.checkpoint},
                            {"checkpoint_manifest_digest", run.checkpoint_digest},
                            {"scores", scores_json(run.scores)},
                            {"source_digests", digests_of(run.files)}};
    c_.fs.write_atomically(candidate + "/hearth_lineage.json",
                           card.dump(1, ' ', false, LineageEvent::error_handler_t::replace) + "\n");
  }
  publish_folder(c_.fs, candidate, release);
  point("watch.promote.renamed");
  require_digests(c_.fs, release, run.exported);
  point_serving_to(c_.fs, c_.config.serving, release, [this](std::string_view name) { point(name); });
  point("watch.promote.linked");
  WatchState next = state();
  next.serving = run.name;
  next.phase = WatchPhase::Prune;
  const std::string held_out = path("data", run.name) + "/validation";
  for (const auto& score : run.scores)
    if (score.dataset != held_out) next.scores.push_back(score);
  commit(std::move(next), {{{"event", "promoted"},
                            {"release", run.name},
                            {"parent", run.parent},
                            {"files", digests_of(run.files)},
                            {"checkpoint_manifest_digest", run.checkpoint_digest},
                            {"scores", scores_json(run.scores)},
                            {"release_files", files_json(run.exported)}}});
}

// The candidate, if there is one, stays in candidates/ for people to look at; serving was never touched.
void WatchLoop::reject(const std::string& reason) {
  const WatchRun& run = *state().run;
  WatchState next = state();
  next.phase = WatchPhase::Prune;
  const LineageEvent event{{"event", "rejected"},
                           {"release", run.name},
                           {"parent", run.parent},
                           {"reason", reason},
                           {"files", digests_of(run.files)},
                           {"scores", scores_json(run.scores)}};
  commit(std::move(next), {event});
}

void WatchLoop::give_up_run() {
  if (state().run && state().phase != WatchPhase::Promote && state().phase != WatchPhase::Prune)
    reject("given up by --give-up-run in the step '" + std::string(name(state().phase)) + "'");
}

// Newest keep_releases releases and candidates stay, with the checkpoints of their runs; the served one and
// the base of comparison always. Sources, shards and the journal stay for good: they are the proof.
void WatchLoop::prune() {
  std::vector<std::string> removed;
  std::string oldest_kept;
  for (const std::string kind : {"releases", "candidates"}) {
    const std::string folder = c_.config.workspace + "/" + kind;
    if (!c_.fs.is_directory(folder)) continue;
    std::vector<std::string> names;
    for (const auto& name : c_.fs.list(folder)) {
      if (name.starts_with("dead.")) c_.fs.remove_all(folder + "/" + name);
      if (is_release_name(name)) names.push_back(name);
    }
    std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
      return std::pair(a.size(), a) < std::pair(b.size(), b);
    });
    const auto kept = std::min(names.size(), static_cast<size_t>(c_.config.keep_releases));
    names.resize(names.size() - kept);
    for (const auto& name : names) {
      if (name == state().serving || (state().run && name == state().run->parent)) continue;
      remove_folder(c_.fs, folder + "/" + name);
      // Without checkpoints a run folder is some kilobytes: configuration, metrics, logs.
      remove_folder(c_.fs, path("runs", name) + "/checkpoints");
      removed.push_back(std::string(kind) + "/" + name);
    }
  }
  point("watch.prune.removed");
  WatchState next = state();
  next.phase = WatchPhase::Collect;
  next.run.reset();
  ++next.next_run;
  std::vector<LineageEvent> events;
  if (!removed.empty()) events.push_back({{"event", "pruned"}, {"folders", removed}});
  commit(std::move(next), std::move(events));
  point("watch.round_ended");
}

}  // namespace hearth
