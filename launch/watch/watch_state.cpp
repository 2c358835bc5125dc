#include "launch/watch/watch_state.h"

#include <array>

#include "base/error.h"
#include "base/strict_json.h"

namespace hearth {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WaitingFile, name, stored, digest, bytes, documents, accepted_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(InboxRemoval, name, size, modified_ns)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(FileDigest, name, digest, bytes)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Score, model, dataset, dataset_digest, loss, tokens)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(WatchRun, name, parent, files, overrides, checkpoint, checkpoint_digest,
                                   exported, scores)

namespace {

using nlohmann::json;

constexpr int64_t kFormatVersion = 1;
constexpr std::array<std::pair<WatchPhase, std::string_view>, 8> kPhases{{{WatchPhase::Base, "base"},
                                                                          {WatchPhase::Collect, "collect"},
                                                                          {WatchPhase::Ingest, "ingest"},
                                                                          {WatchPhase::Train, "train"},
                                                                          {WatchPhase::Export, "export"},
                                                                          {WatchPhase::Evaluate, "evaluate"},
                                                                          {WatchPhase::Promote, "promote"},
                                                                          {WatchPhase::Prune, "prune"}}};

WatchPhase phase_from(const std::string& word, const std::string& path) {
  for (const auto& [phase, text] : kPhases)
    if (text == word) return phase;
  fail(ErrorKind::Corrupt, "{}: unknown phase '{}'", path, word);
}

}  // namespace

std::string_view name(WatchPhase phase) {
  for (const auto& [known, text] : kPhases)
    if (known == phase) return text;
  return "?";
}

std::string state_to_json(const WatchState& state) {
  json out = {{"format", "hearth.watch"},   {"version", kFormatVersion},
              {"sequence", state.sequence}, {"phase", name(state.phase)},
              {"next_run", state.next_run}, {"serving", state.serving},
              {"waiting", state.waiting},   {"too_small_bytes", state.too_small_bytes},
              {"removals", state.removals}, {"scores", state.scores}};
  out["run"] = state.run ? json(*state.run) : json();
  out["events"] = json::array();  // as text: the journal gets these very lines, order of keys included
  for (const auto& event : state.events) out["events"].push_back(lineage_line(event));
  return out.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

WatchState state_from_json(std::string_view text, const std::string& path) {
  const json root = parse_json_strict(text, path, {.kind = ErrorKind::Corrupt});
  WatchState state;
  try {
    HEARTH_CHECK(root.at("format") == "hearth.watch" && root.at("version") == kFormatVersion, Corrupt,
                 "{}: not a state of this version of `hearth watch`", path);
    state.sequence = root.at("sequence").get<int64_t>();
    state.phase = phase_from(root.at("phase").get<std::string>(), path);
    state.next_run = root.at("next_run").get<int64_t>();
    state.serving = root.at("serving").get<std::string>();
    state.waiting = root.at("waiting").get<std::vector<WaitingFile>>();
    state.too_small_bytes = root.at("too_small_bytes").get<int64_t>();
    state.removals = root.at("removals").get<std::vector<InboxRemoval>>();
    if (!root.at("run").is_null()) state.run = root.at("run").get<WatchRun>();
    state.scores = root.at("scores").get<std::vector<Score>>();
    for (const auto& event : root.at("events"))
      state.events.push_back(LineageEvent::parse(event.get<std::string>()));
  } catch (const json::exception& error) {
    fail(ErrorKind::Corrupt, "{}: not a state of `hearth watch` ({})", path, error.what());
  }
  return state;
}

WatchStore::WatchStore(FileSystem& fs, Clock& clock, const std::string& workspace, Hooks hooks)
    : fs_(fs),
      clock_(clock),
      path_(workspace + "/state.json"),
      hooks_(std::move(hooks)),
      journal_(fs, workspace + "/lineage.jsonl") {
  if (fs_.exists(path_)) state_ = state_from_json(fs_.read_text(path_), path_);
  const int64_t before = state_.sequence - static_cast<int64_t>(state_.events.size());
  HEARTH_CHECK(
      before <= journal_.last_number() && journal_.last_number() <= state_.sequence, Corrupt,
      "{} is at event {}, but the journal beside it ends at {}: one of them was replaced; nothing was "
      "touched",
      path_, state_.sequence, journal_.last_number());
  journal_.append(state_.events);
}

void WatchStore::commit(WatchState next, std::vector<LineageEvent> events) {
  if (hooks_.check_lock) hooks_.check_lock();
  next.sequence = state_.sequence;
  next.events.clear();
  const std::string time = utc_text(clock_.now_s());
  for (auto& event : events) {
    LineageEvent numbered{{"seq", ++next.sequence}, {"time", time}};
    numbered.update(event);
    next.events.push_back(std::move(numbered));
  }
  fs_.write_atomically(path_, state_to_json(next));
  state_ = std::move(next);
  if (hooks_.at_point) hooks_.at_point("watch.state_written");
  journal_.append(state_.events);
  if (hooks_.at_point) hooks_.at_point("watch.journal_written");
}

}  // namespace hearth
