#include "parallel/hang_reporter.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

using Clock = FlightRecorder::Clock;

// The head of hang_reporter.h adds these up.
constexpr double kTickS = 0.05;
constexpr double kPageS = 0.6;
constexpr double kClaimS = 0.3;   // for a rank that prints where the one whose turn it was has ended
constexpr double kLingerS = 0.8;  // for the main thread, which ends the process by itself where it can
// A launcher that is going to kill does so one second after its SIGTERM; later it was a request to save.
constexpr double kKillWindowS = 1.5;
constexpr double kHurriedAnswerS = 0.4;
constexpr double kHurriedPageS = 0.2;

Clock::time_point after(Clock::time_point then, double seconds) {
  return then + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double seconds_since(Clock::time_point then) {
  return std::chrono::duration<double>(Clock::now() - then).count();
}

std::string answer_file(int rank) {
  return fmt::format("rank_{:04d}", rank);
}

std::string pid_space() {
  std::error_code none;
  return std::filesystem::read_symlink("/proc/self/ns/pid", none).string();
}

// What the kernel says of a process of this host.
std::string process_state(int64_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(") ");
  const char letter = name_end == std::string::npos ? 'X' : text[name_end + 2];
  if (letter == 'X' || letter == 'Z') return "has ended";
  return letter == 'T' || letter == 't' ? "is stopped (SIGSTOP or a debugger)" : "is alive";
}

}  // namespace

HangTimes::HangTimes(int ranks)
    : look_s(std::clamp(ranks / 32.0, 0.5, 2.0)),
      answer_s(std::max(2.0, look_s + 1.0)),
      poll_s(std::max(kTickS, look_s / 16)),
      end_s(kTickS + answer_s + kPageS + kClaimS + poll_s + kLingerS) {}

// One roll call.
struct HangReporter::Round {
  Clock::time_point answers_by, page_by;
  std::vector<std::optional<RankState>> states;
};

HangReporter::HangReporter(ControlPlane& control, FlightRecorder& recorder, HangOptions options)
    : rank_(control.rank()), recorder_(recorder), options_(std::move(options)), times_(control.world_size()) {
  const nlohmann::json mine = {{"host", control.host()}, {"pid", ::getpid()}, {"pid_space", pid_space()}};
  for (const auto& text : control.all_gather(mine.dump(), "hang_reporter.who")) {
    const auto theirs = nlohmann::json::parse(text);
    const size_t r = ranks_.size();
    ranks_.push_back({.host = theirs.at("host").get<std::string>(),
                      .pid = theirs.at("pid").get<int64_t>(),
                      .place = r < options_.places.size() ? options_.places[r] : "",
                      .process = ""});
    pid_spaces_.push_back(theirs.at("pid_space").get<std::string>());
  }
  open_folder(control);
  thread_ = std::thread([this] { run(); });
}

void HangReporter::open_folder(ControlPlane& control) {
  std::string trouble;
  const auto attempt = [&](const std::function<void()>& step) {
    try {
      if (trouble.empty()) step();
    } catch (const Error& error) {
      trouble = error.message();
    }
  };
  attempt([&] {
    if (rank_ != 0) return;
    fs_->remove_all(options_.folder);
    fs_->create_directories(options_.folder);
    write("alarm", "");
  });
  control.barrier("hang_reporter.folder");
  attempt([&] { write(answer_file(rank_), ""); });
  std::vector<std::string> reasons;
  if (!control.vote(trouble.empty(), trouble, "hang_reporter.ready", &reasons))
    fail(ErrorKind::Io, "{}: not every rank can write there: {}", options_.folder,
         reasons.empty() ? trouble : reasons.front());
}

HangReporter::~HangReporter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  try {
    if (rank_ == 0 && !alarm_in_folder()) fs_->remove_all(options_.folder);
  } catch (const Error&) {  // the next start empties it
  }
}

bool HangReporter::explain(const Error& error) {
  const bool own =
      !recorder_.alarmed() && error.kind() != ErrorKind::Timeout && error.kind() != ErrorKind::Peer;
  if (own) {
    RankState state;
    state.rank = rank_;
    try {
      write_answer(state, error.message());
    } catch (const Error&) {  // a courtesy: the error itself is reported anyway
    }
  } else {
    recorder_.raise_alarm(error.kind(), error.message());
  }
  std::unique_lock lock(mutex_);
  const auto at_most = [&](double seconds, const auto& done) {
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), done);
  };
  if (!own) at_most(times_.end_s - kLingerS + kTickS, [this] { return page_done_; });
  if (!own && page_done_ && !printed_) return false;
  if (!std::exchange(reporter_found_, true)) return true;
  // The caller would end the process while another one reports.
  at_most(kLingerS, [this] { return stop_; });
  return false;
}

bool HangReporter::nap(double seconds) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stop_; });
  return !stop_;
}

void HangReporter::run() {
  const auto begun = Clock::now();
  // Ranks look in turn: all of them at once would be a burst for the file server.
  double next_look_s = times_.look_s * rank_ / static_cast<double>(ranks_.size());
  while (nap(kTickS)) {
    if (const auto alarm = recorder_.alarm()) return hold_round(alarm->kind, /*near_death=*/false);
    const bool is_told = told();
    if (in_a_hurry() || seconds_since(begun) >= next_look_s) {
      if (const auto kind = alarm_in_folder()) return hold_round(*kind, /*near_death=*/false);
      next_look_s = seconds_since(begun) + times_.look_s;
    }
    if (!is_told) continue;
    if (const auto dead = silent_death()) {
      recorder_.raise_alarm(ErrorKind::Peer, fmt::format("rank {} has ended without a word", *dead));
      return hold_round(ErrorKind::Peer, /*near_death=*/true);
    }
  }
}

bool HangReporter::told() {
  if (!told_at_ && options_.told_to_end && options_.told_to_end()) told_at_ = Clock::now();
  return told_at_.has_value();
}

bool HangReporter::in_a_hurry() const {
  return told_at_ && seconds_since(*told_at_) < kKillWindowS;
}

// Empty where it cannot be read.
std::string HangReporter::text_of(const std::string& name) {
  try {
    return fs_->read_text(options_.folder + "/" + name);
  } catch (const Error&) {
    return "";
  }
}

// Several ranks may have raised it: the first one counts.
std::optional<ErrorKind> HangReporter::alarm_in_folder() {
  const std::string text = text_of("alarm");
  if (text.empty()) return std::nullopt;
  return text.starts_with(name(ErrorKind::Peer)) ? ErrorKind::Peer : ErrorKind::Timeout;
}

// A rank of this host that has ended where nobody has announced an error of its own. Looks at processes
// first: a run that was asked to save and end does this at every tick, and should leave the file server
// alone.
std::optional<int> HangReporter::silent_death() {
  if (end_expected_ || deaths_explained_) return std::nullopt;
  const int world = static_cast<int>(ranks_.size());
  int dead = 0;
  while (dead < world && process(dead) != "has ended") ++dead;
  if (dead == world) return std::nullopt;
  for (int r = 0; r < world && !deaths_explained_; ++r) {
    const auto state = answer(r);
    deaths_explained_ = state && !state->error.empty();
  }
  // Again: the end may have become an expected one between the two looks.
  return deaths_explained_ || end_expected_ ? std::nullopt : std::optional(dead);
}

// Empty where the rank is on another host.
std::string HangReporter::process(int rank) const {
  const auto r = static_cast<size_t>(rank), me = static_cast<size_t>(rank_);
  const bool near = ranks_[r].host == ranks_[me].host && pid_spaces_[r] == pid_spaces_[me];
  return near ? process_state(ranks_[r].pid) : "";
}

// Nothing while the file is empty or half written.
std::optional<RankState> HangReporter::answer(int rank) {
  const std::string path = options_.folder + "/" + answer_file(rank);
  try {
    return parse_rank_state(fs_->read_text(path));
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Both threads may have something to say: an error of this rank's own stays on record.
void HangReporter::write_answer(RankState& state, std::string_view own_error) {
  const std::lock_guard lock(answer_mutex_);
  if (own_error_.empty()) own_error_ = own_error;
  state.error = own_error_;
  write(answer_file(rank_), to_json(state));
}

// Not durable, as nobody reads it after a power cut.
void HangReporter::write(const std::string& name, std::string_view text) {
  const auto file = fs_->create(options_.folder + "/" + name, CreateMode::Truncate);
  file->write(text);
  file->close();
}

void HangReporter::hold_round(ErrorKind kind, bool near_death) {
  const auto now = Clock::now();
  Round round{
      .answers_by = after(now, near_death ? kHurriedAnswerS : times_.answer_s), .page_by = {}, .states = {}};
  round.page_by = after(round.answers_by, near_death ? kHurriedPageS : kPageS);
  round.states.resize(ranks_.size());
  bool is_out = false;
  try {
    is_out = meet(round);
  } catch (const Error&) {  // the folder is gone: the ranks' own errors have to do
  }
  {
    const std::lock_guard lock(mutex_);
    page_done_ = true;
    printed_ = printed_ || !is_out;
  }
  changed_.notify_all();
  if (const auto alarm = recorder_.alarm()) kind = alarm->kind;
  // No destructor and no MPI call: the main thread may sit in either.
  if (nap(kLingerS)) ::_exit(exit_code(kind));
}

// Returns when the page is out, or there will be none; whether it is out.
bool HangReporter::meet(Round& round) {
  RankState mine = rank_state(rank_, recorder_);
  const bool raised = !mine.alarm.empty();
  if (raised)  // appended, so that it is never empty again
    fs_->create(options_.folder + "/alarm", CreateMode::Append)->write(name(recorder_.alarm()->kind));
  write_answer(mine);
  round.states[static_cast<size_t>(rank_)] = mine;
  if (!wait_for_turn(round, raised)) return page_is_out();
  if (!claim_page()) return wait_for_page(std::max(round.page_by, after(Clock::now(), kClaimS)));
  // What a rank that followed another one has not read yet, or came late.
  read_answers(round, after(Clock::now(), kClaimS), /*below=*/0);
  print_page(round);
  return true;
}

// Once the launcher has begun to end the job.
void HangReporter::shorten(Round& round) {
  told();
  if (!in_a_hurry()) return;
  round.answers_by = std::min(round.answers_by, after(*told_at_, kHurriedAnswerS));
  round.page_by = std::min(round.page_by, after(*told_at_, kHurriedAnswerS + kHurriedPageS));
}

// True when this rank should print: it has raised the alarm, no rank below will print, and all that live have
// answered or their time is up; or nobody else has printed in time. False when the page is out.
bool HangReporter::wait_for_turn(Round& round, bool raised) {
  Pass pass = Pass::Led;
  // The first nap lets ranks that raise the alarm together with this one write.
  while (nap(pass == Pass::Led && !in_a_hurry() ? times_.poll_s : kTickS)) {
    shorten(round);
    if (page_is_out()) return false;
    if (Clock::now() >= round.page_by) return true;
    if (!raised) continue;
    pass = read_answers(round, round.answers_by, /*below=*/rank_);
    if (pass == Pass::Complete || (pass == Pass::Incomplete && Clock::now() >= round.answers_by)) return true;
  }
  return false;
}

// One pass over the answers that are still missing, in the order of ranks. Led: a rank under `below` will
// print, and the pass ends there, as only one rank needs them all. Complete: nobody else can answer any more.
HangReporter::Pass HangReporter::read_answers(Round& round, Clock::time_point by, int below) {
  bool complete = true;
  for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
    auto& state = round.states[static_cast<size_t>(r)];
    if (!state && Clock::now() < by) state = answer(r);
    if (r < below && will_print(r, state)) return Pass::Led;
    if (state) continue;
    const std::string now = process(r);
    complete = complete && (now == "has ended" || now.starts_with("is stopped"));
  }
  return complete ? Pass::Complete : Pass::Incomplete;
}

// Whether the rank raised the alarm as well, and can go on as far as we see.
bool HangReporter::will_print(int rank, const std::optional<RankState>& state) const {
  if (!state || !state->error.empty() || state->alarm.empty()) return false;
  const std::string now = process(rank);
  return now.empty() || now == "is alive";
}

// With content: the name alone says that a rank means to print.
bool HangReporter::page_is_out() {
  return !text_of("page").empty();
}

bool HangReporter::wait_for_page(Clock::time_point until) {
  while (!page_is_out())
    if (Clock::now() >= until || !nap(kTickS)) return false;
  return true;
}

// For one rank of the job.
bool HangReporter::claim_page() {
  {
    const std::lock_guard lock(mutex_);
    if (stop_) return false;
  }
  try {
    fs_->create(options_.folder + "/page", CreateMode::Exclusive)->close();
    return true;
  } catch (const Error&) {
    return false;
  }
}

void HangReporter::print_page(const Round& round) {
  HangInput input{.ranks = ranks_, .states = round.states, .folder = options_.folder};
  for (size_t r = 0; r < ranks_.size(); ++r)
    if (!round.states[r]) input.ranks[r].process = process(static_cast<int>(r));
  const std::string page = hang_page(input);
  try {
    if (options_.print) options_.print(page);
  } catch (const Error&) {  // it goes to more than one place, and the first may have worked
  }
  {
    const std::lock_guard lock(mutex_);
    printed_ = true;
  }
  write("page", page);  // last: the others end the job when they see it
}

}  // namespace hearth
