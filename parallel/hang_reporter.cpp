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

constexpr double kTickS = 0.05;
// Looks at the folder are this many ticks apart: little for a file server with many ranks.
constexpr int kTicksPerLook = 10;
constexpr double kAnswerS = 2.0;
constexpr double kHurriedAnswerS = 0.4;
// For the rank that prints, where this one sees all answers first.
constexpr double kPageS = 1.0;
// For the main thread, which ends the process by itself where it can.
constexpr double kLingerS = 0.8;

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

// One roll call.
struct HangReporter::Round {
  double answer_s;
  Clock::time_point begun = Clock::now();
  std::vector<std::optional<RankState>> states;
  int lowest() const {
    const auto first =
        std::find_if(states.begin(), states.end(), [](const auto& s) { return s.has_value(); });
    return static_cast<int>(first - states.begin());
  }
};

HangReporter::HangReporter(ControlPlane& control, FlightRecorder& recorder, HangOptions options)
    : rank_(control.rank()), recorder_(recorder), options_(std::move(options)) {
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
    if (rank_ == 0 && !alarm_is_up()) fs_->remove_all(options_.folder);
  } catch (const Error&) {  // the next start empties it
  }
}

bool HangReporter::explain(const Error& error) {
  if (!recorder_.alarmed() && error.kind() != ErrorKind::Timeout && error.kind() != ErrorKind::Peer) {
    RankState state;
    state.rank = rank_;
    state.error = error.message();
    try {
      write(answer_file(rank_), to_json(state));
    } catch (const Error&) {  // a courtesy: the error itself is reported anyway
    }
    return true;
  }
  recorder_.raise_alarm(error.kind(), error.message());
  std::unique_lock lock(mutex_);
  const std::chrono::duration<double> patience(2 * kTickS + kAnswerS + kPageS);
  changed_.wait_for(lock, patience, [this] { return page_done_; });
  return printed_ || !page_done_;
}

bool HangReporter::nap(double seconds) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stop_; });
  return !stop_;
}

void HangReporter::run() {
  for (int tick = 0; nap(kTickS); ++tick) {
    const bool told = options_.told_to_end && options_.told_to_end();
    const bool look = told || tick % kTicksPerLook == 0;
    if (recorder_.alarmed() || (look && alarm_is_up()) || (told && died_silently())) return hold_round(told);
  }
}

bool HangReporter::alarm_is_up() {
  const std::string path = options_.folder + "/alarm";
  try {
    return fs_->exists(path) && fs_->open(path)->size() > 0;
  } catch (const Error&) {
    return false;
  }
}

// Whether a rank of this host has ended, and nobody has announced an error of his own.
bool HangReporter::died_silently() {
  bool died = false;
  for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
    const auto state = answer(r);
    if (state && !state->error.empty()) return false;
    died = died || process(r) == "has ended";
  }
  return died;
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

// Not durable, as nobody reads it after a power cut.
void HangReporter::write(const std::string& name, std::string_view text) {
  const auto file = fs_->create(options_.folder + "/" + name, CreateMode::Truncate);
  file->write(text);
  file->close();
}

void HangReporter::hold_round(bool in_a_hurry) {
  bool met = false;
  try {
    meet(in_a_hurry ? kHurriedAnswerS : kAnswerS);
    met = true;
  } catch (const Error&) {  // the folder is gone: the ranks' own errors have to do
  }
  {
    const std::lock_guard lock(mutex_);
    page_done_ = true;
    printed_ = printed_ || !met;
  }
  changed_.notify_all();
  const auto alarm = recorder_.alarm();
  const ErrorKind kind = alarm ? alarm->kind : in_a_hurry ? ErrorKind::Peer : ErrorKind::Timeout;
  // No destructor and no MPI call: the main thread may sit in either.
  if (nap(kLingerS)) ::_exit(exit_code(kind));
}

// Returns when the page is out, or somebody else should have printed it.
void HangReporter::meet(double answer_s) {
  Round round{.answer_s = answer_s, .states = {}};
  round.states.resize(ranks_.size());
  write(answer_file(rank_), to_json(rank_state(rank_, recorder_)));
  write("alarm", "!");
  gather(round);
  if (rank_ == round.lowest()) print_page(round);
  while (!fs_->exists(options_.folder + "/page") && seconds_since(round.begun) < answer_s + kPageS)
    if (!nap(kTickS)) return;
}

// Until all that live have answered, or their time is up.
void HangReporter::gather(Round& round) {
  bool complete = false;
  while (!complete && seconds_since(round.begun) < round.answer_s) {
    complete = true;
    for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
      auto& state = round.states[static_cast<size_t>(r)];
      if (!state) state = answer(r);
      if (state) continue;
      const std::string now = process(r);
      complete = complete && (now == "has ended" || now.rfind("is stopped", 0) == 0);
    }
    if (!complete && !nap(kTickS)) return;
  }
}

void HangReporter::print_page(const Round& round) {
  HangInput input{.ranks = ranks_, .states = round.states, .folder = options_.folder};
  for (size_t r = 0; r < ranks_.size(); ++r)
    if (!round.states[r]) input.ranks[r].process = process(static_cast<int>(r));
  // Exclusive: a rank below, whose answer came too late for us, may think that the page is its to print.
  const auto file = fs_->create(options_.folder + "/page", CreateMode::Exclusive);
  const std::string page = hang_page(input);
  if (options_.print) options_.print(page);
  file->write(page);
  const std::lock_guard lock(mutex_);
  printed_ = true;
}

}  // namespace hearth
