#include "launch/watch/watch_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/error.h"
#include "launch/watch/trigger.h"

namespace hearth {
namespace {

constexpr size_t kFilesPerCommit = 256;  // bounds what a kill makes the next start copy again
constexpr int64_t kSlice_ms = 100;       // how late a request to stop is noticed between looks
// A step whose folder is in use: after a kill the step before may still be dying, ranks and devices included.
constexpr int kInUseTries = 30;
constexpr int64_t kInUsePause_ms = 2000;

// The kind whose exit code a child ended with. Killed by a signal: as a lost rank.
ErrorKind kind_of_code(int code) {
  for (const ErrorKind kind : {ErrorKind::Usage, ErrorKind::Config, ErrorKind::BadInput, ErrorKind::Corrupt,
                               ErrorKind::Numeric, ErrorKind::Timeout, ErrorKind::Peer, ErrorKind::Io,
                               ErrorKind::InUse, ErrorKind::Cuda, ErrorKind::Preempted})
    if (exit_code(kind) == code) return kind;
  return code > 128 ? ErrorKind::Peer : ErrorKind::Internal;
}

std::string ended(int code) {
  return code > 128 ? fmt::format("was killed (signal {})", code - 128)
                    : fmt::format("ended with code {}", code);
}

}  // namespace

WatchLoop::WatchLoop(Context context)
    : c_(std::move(context)),
      store_(c_.fs, c_.clock, c_.config.workspace, {.at_point = c_.at_point, .check_lock = c_.check_lock}),
      used_(used_digests(store_.journal().events())),
      inbox_(c_.fs, c_.clock, c_.config.inbox, static_cast<int64_t>(c_.config.settle_s * 1000)) {
  for (const char* folder : {"accepted", "candidates", "data", "log", "rejected", "releases", "runs", "tmp"})
    c_.fs.create_directories(c_.config.workspace + "/" + folder);
}

std::string WatchLoop::batch_folder() const {
  return path("accepted", release_name(state().next_run));
}

void WatchLoop::commit(WatchState next, std::vector<LineageEvent> events) {
  for (const auto& event : events) {
    const std::string kind = event.at("event").get<std::string>();
    if (kind == "file_accepted") used_.insert(event.at("digest").get<std::string>());
    if (kind == "file_rejected") used_.erase(event.at("digest").get<std::string>());
    std::string line = "event=watch." + kind;
    for (const auto& [key, value] : event.items()) {
      if (key == "event" || value.is_structured()) continue;
      line += fmt::format(" {}={}", key, value.dump(-1, ' ', false, LineageEvent::error_handler_t::replace));
    }
    c_.log.info("{}", line);
  }
  store_.commit(std::move(next), std::move(events));
}

void WatchLoop::stop_if_asked() const {
  if (c_.stop_requested && c_.stop_requested())
    fail(ErrorKind::Preempted,
         "asked to stop before the step '{}'; everything done so far is recorded, start it again",
         name(state().phase));
}

void WatchLoop::run(WatchMode mode) {
  finish_removals();
  while (true) {
    stop_if_asked();
    if (state().phase != WatchPhase::Collect) {
      step();
      continue;
    }
    if (collect()) continue;
    if (mode == WatchMode::UntilIdle && inbox_.unsettled() == 0) return;
    const int64_t until = c_.clock.monotonic_ms() + static_cast<int64_t>(c_.config.poll_interval_s * 1000);
    for (int64_t left = 1; left > 0;) {
      stop_if_asked();
      left = until - c_.clock.monotonic_ms();
      if (left > 0) c_.clock.sleep_ms(std::min(left, kSlice_ms));
    }
  }
}

void WatchLoop::step() {
  switch (state().phase) {
    case WatchPhase::Base:
      return release_base();
    case WatchPhase::Collect:
      return;
    case WatchPhase::Ingest:
      return ingest();
    case WatchPhase::Train:
      return train();
    case WatchPhase::Export:
      return export_candidate();
    case WatchPhase::Evaluate:
      return evaluate();
    case WatchPhase::Promote:
      return promote();
    case WatchPhase::Prune:
      return prune();
  }
}

// Somebody may have pointed the link back to an older release by hand: then that one is served.
void WatchLoop::check_serving() {
  const std::string served = release_served(c_.fs, c_.config.serving, c_.config.workspace + "/releases");
  if (served == state().serving) return;
  if (served.empty()) {
    c_.log.warning("event=watch.serving_missing link={}: made again", c_.config.serving);
    return point_serving_to(c_.fs, c_.config.serving, path("releases", state().serving), c_.at_point);
  }
  WatchState next = state();
  next.serving = served;
  commit(std::move(next),
         {{{"event", "serving_found"}, {"release", served}, {"instead_of", state().serving}}});
}

bool WatchLoop::collect() {
  check_serving();
  if (accept_files()) return true;
  const auto reason = trigger_reason(c_.config.trigger, state().waiting, state().too_small_bytes, c_.clock);
  if (!reason) return false;
  plan_run(*reason);
  return true;
}

// Copies first, then one commit for all of them, then the inbox files go. A copy that no commit knows is
// found by the next look (the file is in the inbox still) or removed before the ingestion.
bool WatchLoop::accept_files() {
  auto found = inbox_.look();
  if (found.size() > kFilesPerCommit) found.resize(kFilesPerCommit);
  WatchState next = state();
  std::vector<LineageEvent> events;
  std::set<std::string> fresh;
  const CorpusContent content = corpus_content(c_.config.prepare_arguments);
  c_.fs.create_directories(batch_folder());
  for (const auto& [name, stamp] : found) {
    stop_if_asked();
    const std::string from = c_.config.inbox + "/" + name, temporary = batch_folder() + "/.arriving";
    const auto digest = copy_digested(c_.fs, from, stamp, temporary);
    if (!digest) continue;  // it changes still
    next.removals.push_back({name, stamp.size, stamp.modified_ns});
    const auto ending = corpus_ending(name, content);
    if (used_.contains(*digest) || fresh.contains(*digest)) {
      c_.fs.remove(temporary);
      events.push_back({{"event", "file_duplicate"}, {"name", name}, {"digest", *digest}});
    } else if (!ending) {
      const std::string kept = path("rejected", *digest + "-" + name);
      const std::string reason = content == CorpusContent::Documents
                                     ? "no .txt, .jsonl (also .gz, .zst) or .h5 file"
                                     : "no .jsonl or .json file (also .gz, .zst)";
      c_.fs.write_atomically(kept + ".reason", reason + "\n");
      c_.fs.rename(temporary, kept);
      events.push_back({{"event", "file_rejected"}, {"name", name}, {"digest", *digest}, {"reason", reason}});
    } else {
      const std::string stored = *digest + ending->text;
      c_.fs.rename(temporary, batch_folder() + "/" + stored);
      fresh.insert(*digest);
      const bool counts = c_.config.trigger.min_new_documents > 0;
      next.waiting.push_back({.name = name,
                              .stored = stored,
                              .digest = *digest,
                              .bytes = stamp.size,
                              .documents = counts ? count_documents(c_.fs, batch_folder() + "/" + stored) : 0,
                              .accepted_s = c_.clock.now_s()});
      events.push_back(
          {{"event", "file_accepted"}, {"name", name}, {"digest", *digest}, {"bytes", stamp.size}});
    }
    point("watch.accept.copied");
  }
  if (events.empty()) return false;
  c_.fs.sync_directory(batch_folder());  // the names, before anything else relies on them
  c_.fs.sync_directory(c_.config.workspace + "/rejected");
  commit(std::move(next), std::move(events));
  point("watch.accept.recorded");
  finish_removals();
  return true;
}

void WatchLoop::finish_removals() {
  if (state().removals.empty()) return;
  for (const auto& removal : state().removals) {
    const std::string file = c_.config.inbox + "/" + removal.name;
    const FileStamp taken{true, removal.size, removal.modified_ns};
    if (c_.fs.exists(file) && c_.fs.stamp(file) == taken) c_.fs.remove(file);
  }
  c_.fs.sync_directory(c_.config.inbox);
  point("watch.accept.removed");
  WatchState next = state();
  next.removals.clear();
  commit(std::move(next));
}

void WatchLoop::plan_run(const std::string& reason) {
  WatchState next = state();
  next.phase = WatchPhase::Ingest;
  next.run = WatchRun{.name = release_name(next.next_run), .parent = next.serving, .files = next.waiting};
  next.waiting.clear();
  std::vector<std::string> digests;
  for (const auto& file : next.run->files) digests.push_back(file.digest);
  const LineageEvent event{{"event", "run_planned"},
                           {"run", next.run->name},
                           {"parent", next.serving},
                           {"trigger", reason},
                           {"files", digests}};
  point("watch.plan");
  commit(std::move(next), {event});
}

std::string WatchLoop::output_of(const std::string& step) const {
  const std::string run = state().run ? state().run->name : release_name(0);
  return path("log", run + "." + step + ".out");
}

ChildResult WatchLoop::run_step(const Step& step) {
  const std::string run = state().run ? state().run->name : release_name(0);
  ChildCommand command{
      .words = {}, .output = output_of(step.name), .log = path("log", run + "." + step.name + ".log")};
  if (step.launched) command.words = c_.config.launcher;
  command.words.push_back(c_.program);
  command.words.insert(command.words.end(), step.words.begin(), step.words.end());
  c_.log.info("event=watch.step run={} step={} command=\"{}\"", run, step.name,
              fmt::join(command.words, " "));
  ChildResult result;
  for (int tries = 0;; ++tries) {
    result = c_.children.run(command);
    if (result.code == 0) return result;
    stop_if_asked();
    if (result.code != exit_code(ErrorKind::InUse) || tries == kInUseTries) break;
    c_.clock.sleep_ms(kInUsePause_ms);
  }
  if (std::find(step.expected.begin(), step.expected.end(), result.code) != step.expected.end())
    return result;
  commit(state(), {{{"event", "step_failed"},
                    {"run", run},
                    {"step", step.name},
                    {"code", result.code},
                    {"message", result.last_lines}}});
  throw Error(kind_of_code(result.code),
              fmt::format("the step '{}' of run {} {}; serving still has release {}. Its last lines:\n{}",
                          step.name, run, ended(result.code),
                          state().serving.empty() ? "none" : state().serving, result.last_lines))
      .with("log", command.log)
      .with("to do", "put right what it names and start `hearth watch` again: it goes on with this step");
}

std::vector<std::string> describe_next(FileSystem& fs, Clock& clock, const WatchConfig& config) {
  const std::string file = config.workspace + "/state.json";
  const WatchState now = fs.exists(file) ? state_from_json(fs.read_text(file), file) : WatchState{};
  const CorpusContent content = corpus_content(config.prepare_arguments);
  std::vector<std::string> lines;
  lines.push_back("serving       " + (now.serving.empty() ? "nothing yet" : "release " + now.serving));
  for (const auto& entry : fs.list(config.inbox)) {
    const FileStamp stamp = fs.stamp(config.inbox + "/" + entry);
    const char* fate = is_ignored_name(entry) || !stamp.regular ? "ignored"
                       : corpus_ending(entry, content)          ? "would be accepted"
                                                                : "would be rejected: unknown ending";
    lines.push_back(fmt::format("inbox         {}  {} bytes  {}", entry, stamp.size, fate));
  }
  for (const auto& waiting : now.waiting)
    lines.push_back(fmt::format("waiting       {}  {} bytes  since {}", waiting.name, waiting.bytes,
                                utc_text(waiting.accepted_s)));
  if (now.phase != WatchPhase::Collect) {
    lines.push_back(
        fmt::format("next step     {}{}", name(now.phase), now.run ? " of run " + now.run->name : ""));
    return lines;
  }
  const auto reason = trigger_reason(config.trigger, now.waiting, now.too_small_bytes, clock);
  lines.push_back("next step     " + (reason ? "run " + release_name(now.next_run) + ", " + *reason
                                             : "wait: no condition of trigger holds for the waiting files"));
  return lines;
}

std::vector<std::string> set_values(const std::vector<std::string>& words) {
  std::vector<std::string> values;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--set" && i + 1 < words.size()) values.push_back(words[++i]);
    if (words[i].starts_with("--set=")) values.push_back(words[i].substr(6));
  }
  return values;
}

}  // namespace hearth
