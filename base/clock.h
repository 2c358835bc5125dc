// Time as an interface, so that tests own it: what waits for an hour of the day or the age of a file takes a
// Clock. Durations inside one process are measured with monotonic_ms(); now_s() is for records, and for
// decisions that must survive a restart. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace hearth {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t now_s() = 0;  // seconds since 1970-01-01T00:00:00Z
  virtual int64_t monotonic_ms() = 0;
  virtual void sleep_ms(int64_t ms) = 0;  // a signal ends it early
  // The newest instant (as now_s) that is not in the future and at which local clocks showed this minute of
  // the day. A minute that a change to summer time leaves out counts as the one an hour later.
  virtual int64_t latest_local(int minute_of_day) = 0;
};

std::unique_ptr<Clock> make_system_clock();

std::string utc_text(int64_t unix_s);  // "2026-01-31T02:00:00Z"

}  // namespace hearth
