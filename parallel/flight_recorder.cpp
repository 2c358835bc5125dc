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

std::vector<FlightRecorder::Entry> FlightRecorder::entries() const {
  std::vector<Entry> out;
  {
    const std::lock_guard lock(mutex_);
    for (const Entry& e : ring_)
      if (e.id != 0) out.push_back(e);
  }
  std::sort(out.begin(), out.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });
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
