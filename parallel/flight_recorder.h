// The last calls between ranks, kept so that a hang can be explained: what is pending here, since when, and
// what finished last. One per process, shared by the control plane and every Comm. Thread-safe: the NCCL
// watchdog reads while the main thread writes. Memory is bounded by `capacity` entries; an entry that is
// still pending when its place is needed again is forgotten. The idea is that of the flight recorders of
// PyTorch's ProcessGroupNCCL and of MegaScale (Jiang et al. 2024).
// It also holds the alarm: whoever sees that the job cannot go on raises it here, and the hang reporter
// (parallel/hang_reporter.h) looks for it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"

namespace hearth {

class FlightRecorder {
 public:
  using Clock = std::chrono::steady_clock;
  struct Call {
    std::string_view op;     // "all_reduce"
    std::string_view site;   // "grad.bucket3"
    std::string_view group;  // "dp"
    uint64_t seq = 0;        // number of the call within its group: equal on all ranks of the group
    int64_t size_bytes = 0;
    DType dtype = DType::U8;
    int group_id = kAllRanks;  // of add_group
    int peer = -1;             // global rank, of a send or recv
  };
  static constexpr int kAllRanks = 0;  // the group of the control plane
  enum class State { Pending, Done, Failed };
  struct Entry {
    uint64_t id = 0;  // counts all calls of this process from 1
    std::string op, site, group;
    uint64_t seq = 0;
    int64_t size_bytes = 0;
    DType dtype = DType::U8;
    int group_id = kAllRanks, peer = -1;
    bool held = false;  // this rank cannot go on before the call is done
    State state = State::Pending;
    Clock::time_point begun, ended;
  };

  struct Alarm {
    ErrorKind kind;
    std::string reason;
    std::vector<Entry> entries;  // as they were then: what the error does on its way out must not hide them
  };

  // Told about every call, for traces. end() comes on any thread, the others on the thread that makes the
  // call. Must not call the recorder: it is locked.
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void begin(uint64_t id, const Call& call) = 0;
    virtual void issued(
        uint64_t id) = 0;               // what begin() announced is on its way; not told for a blocking call
    virtual void end(uint64_t id) = 0;  // done or failed
  };

  explicit FlightRecorder(size_t capacity = 2048);
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  int add_group(std::vector<int> ranks);         // global; returns the id for Call
  std::vector<std::vector<int>> groups() const;  // by id; empty for kAllRanks

  uint64_t begin(const Call& call);  // returns the id that the calls below take
  // This rank waits in the call from here on. Over NCCL the device waits: right after begin().
  void hold(uint64_t id);
  void end(uint64_t id) { close(id, State::Done); }
  void fail(uint64_t id) { close(id, State::Failed); }
  // For the observer alone: the call is launched, and may be pending for long. Without an observer it costs a
  // load.
  void issued(uint64_t id) {
    if (observer_ != nullptr) tell_issued(id);
  }
  void raise_alarm(ErrorKind kind, std::string_view reason);  // the first one counts
  std::optional<Alarm> alarm() const;
  bool alarmed() const { return alarmed_; }

  // Null: none. Returns when no thread is inside the observer that was there before.
  void observe(Observer* observer);

  // One text, oldest first: "all_reduce grad.bucket3 (group dp, call 412, 1048576 bytes bf16, 2.0 s); ...
  // last finished: ...".
  std::string describe_pending() const;
  // One line per entry, oldest first, times in seconds relative to the newest begin.
  std::string dump() const;
  std::vector<Entry> entries() const;  // oldest first

 private:
  std::vector<Entry> sorted_entries() const;  // with mutex_ held
  void close(uint64_t id, State state);
  void tell_issued(uint64_t id);
  mutable std::mutex mutex_;
  std::vector<Entry> ring_;
  std::vector<std::vector<int>> groups_{{}};
  std::optional<Alarm> alarm_;
  std::atomic<bool> alarmed_ = false;  // alarm_ is set: spares a look the lock
  uint64_t last_id_ = 0;
  std::atomic<Observer*> observer_ = nullptr;  // changed and called under mutex_
};

}  // namespace hearth
