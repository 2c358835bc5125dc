#include "parallel/flight_recorder.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"

namespace hearth {
namespace {

double seconds(FlightRecorder::Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

std::string describe(const FlightRecorder::Entry& e) {
  return fmt::format("{} {} (group {}, call {}, {} bytes {}", e.op, e.site, e.group, e.seq, e.size_bytes,
                     config_name(e.dtype));
}

std::string_view name(FlightRecorder::State state) {
  switch (state) {
    case FlightRecorder::State::Pending:
      return "pending";
    case FlightRecorder::State::Done:
      return "done";
    default:
      return "failed";
  }
}

}  // namespace

FlightRecorder::FlightRecorder(size_t capacity) : ring_(capacity) {
  HEARTH_REQUIRE(capacity > 0, "flight recorder: capacity must be > 0");
}

int FlightRecorder::add_group(std::vector<int> ranks) {
  const std::lock_guard lock(mutex_);
  groups_.push_back(std::move(ranks));
  return static_cast<int>(groups_.size()) - 1;
}

std::vector<std::vector<int>> FlightRecorder::groups() const {
  const std::lock_guard lock(mutex_);
  return groups_;
}

uint64_t FlightRecorder::begin(const Call& call) {
  const std::lock_guard lock(mutex_);
  Entry& e = ring_[++last_id_ % ring_.size()];
  e.id = last_id_;
  e.op = call.op;
  e.site = call.site;
  e.group = call.group;
  e.seq = call.seq;
  e.size_bytes = call.size_bytes;
  e.dtype = call.dtype;
  e.group_id = call.group_id;
  e.peer = call.peer;
  e.held = false;
  e.state = State::Pending;
  e.begun = e.ended = Clock::now();
  if (Observer* observer = observer_) observer->begin(e.id, call);
  return e.id;
}

void FlightRecorder::observe(Observer* observer) {
  const std::lock_guard lock(mutex_);
  observer_ = observer;
}

void FlightRecorder::tell_issued(uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (Observer* observer = observer_) observer->issued(id);
}

void FlightRecorder::close(uint64_t id, State state) {
  const std::lock_guard lock(mutex_);
  if (Observer* observer = observer_) observer->end(id);
  Entry& e = ring_[id % ring_.size()];
  if (e.id != id) return;  // forgotten: the ring went round
  e.state = state;
  e.ended = Clock::now();
}

void FlightRecorder::hold(uint64_t id) {
  const std::lock_guard lock(mutex_);
  Entry& e = ring_[id % ring_.size()];
  if (e.id == id) e.held = true;
}

void FlightRecorder::raise_alarm(ErrorKind kind, std::string_view reason) {
  const std::lock_guard lock(mutex_);
  if (alarm_) return;
  alarm_ = Alarm{kind, std::string(reason), sorted_entries()};
  alarmed_ = true;
}

std::optional<FlightRecorder::Alarm> FlightRecorder::alarm() const {
  const std::lock_guard lock(mutex_);
  return alarm_;
}

std::vector<FlightRecorder::Entry> FlightRecorder::entries() const {
  const std::lock_guard lock(mutex_);
  return sorted_entries();
}

// The ring from its oldest entry on.
std::vector<FlightRecorder::Entry> FlightRecorder::sorted_entries() const {
  std::vector<Entry> out;
  const uint64_t kept = std::min<uint64_t>(last_id_, ring_.size());
  for (uint64_t id = last_id_ - kept + 1; id <= last_id_; ++id) out.push_back(ring_[id % ring_.size()]);
  return out;
}

std::string FlightRecorder::describe_pending() const {
  const auto now = Clock::now();
  const auto all = entries();
  std::string text;
  const Entry* last = nullptr;
  for (const Entry& e : all) {
    if (e.state == State::Pending)
      text += fmt::format("{}{}, {:.1f} s)", text.empty() ? "" : "; ", describe(e), seconds(now - e.begun));
    else if (e.state == State::Done && (last == nullptr || e.ended >= last->ended))
      last = &e;
  }
  if (text.empty()) text = "nothing";
  if (last != nullptr)
    text += fmt::format("; last finished: {}, {:.1f} s ago)", describe(*last), seconds(now - last->ended));
  return text;
}

std::string FlightRecorder::dump() const {
  const auto all = entries();
  std::string text = "id group call op site bytes dtype state begun_s took_s\n";
  if (all.empty()) return text;
  const auto now = Clock::now();
  const auto newest = all.back().begun;
  for (const Entry& e : all) {
    const auto end = e.state == State::Pending ? now : e.ended;
    text += fmt::format("{} {} {} {} {} {} {} {} {:.6f} {:.6f}\n", e.id, e.group, e.seq, e.op, e.site,
                        e.size_bytes, config_name(e.dtype), name(e.state), seconds(e.begun - newest),
                        seconds(end - e.begun));
  }
  return text;
}

}  // namespace hearth
