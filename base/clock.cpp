#include "base/clock.h"

#include <array>
#include <chrono>
#include <ctime>

namespace hearth {
namespace {

class SystemClock final : public Clock {
 public:
  int64_t now_s() override { return std::time(nullptr); }
  int64_t monotonic_ms() override {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  }
  // Not std::this_thread::sleep_for, which sleeps again after a signal.
  void sleep_ms(int64_t ms) override {
    const timespec wanted{static_cast<std::time_t>(ms / 1000), static_cast<long>(ms % 1000 * 1'000'000)};
    ::nanosleep(&wanted, nullptr);
  }
  int64_t latest_local(int minute_of_day) override {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    ::localtime_r(&now, &local);
    const auto on_day = [&](int days_ago) {
      std::tm wanted = local;
      wanted.tm_mday -= days_ago;  // mktime carries over months
      wanted.tm_hour = minute_of_day / 60;
      wanted.tm_min = minute_of_day % 60;
      wanted.tm_sec = 0;
      wanted.tm_isdst = -1;  // that day may have another offset than today
      return std::mktime(&wanted);
    };
    const std::time_t today = on_day(0);
    return today <= now ? today : on_day(1);
  }
};

}  // namespace

std::unique_ptr<Clock> make_system_clock() {
  return std::make_unique<SystemClock>();
}

std::string utc_text(int64_t unix_s) {
  const auto seconds = static_cast<std::time_t>(unix_s);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text.data();
}

}  // namespace hearth
