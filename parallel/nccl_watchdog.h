// Follows the collectives of one NCCL communicator from a thread of its own. See nccl_comm.h for what it does
// on trouble. Thread-safe.
#pragma once

#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "parallel/cuda_handles.h"
#include "parallel/flight_recorder.h"

namespace hearth {

class NcclWatchdog {
 public:
  struct Options {
    int device = 0;
    double timeout_s = 300;
    std::function<void(const Error&, const FlightRecorder&)> on_fatal;
  };
  // One collective. Fields are the watchdog's, but `done`, which the owner records after the NCCL call.
  struct Flight {
    CudaEvent done;
    uint64_t id = 0;  // of the flight recorder
    std::string what;
    FlightRecorder::Clock::time_point deadline;
    bool enqueued = false, complete = false, released = false;
  };

  NcclWatchdog(FlightRecorder& recorder, Options options);
  ~NcclWatchdog();  // ends the thread
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  // Polls asynchronous errors of `comm` from now on.
  void watch(ncclComm_t comm);
  // Stops polling it; returns whether it was aborted already (then it must not be destroyed again).
  bool unwatch();

  Flight& begin(uint64_t id, std::string what);
  void enqueued(Flight& flight);   // `done` is recorded
  void completed(Flight& flight);  // for a flight without device work (set-up)
  void release(Flight& flight);    // the owner forgets it
  bool idle();                     // no flight is incomplete
  // Throws what went wrong, if anything did.
  void check();
  bool failed() const { return failed_; }

 private:
  void run();
  std::optional<Error> inspect();
  std::optional<Error> inspect(Flight& flight);
  void end(const Error& error);

  FlightRecorder& recorder_;
  Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  ncclComm_t comm_ = nullptr;
  bool aborted_ = false;
  std::vector<std::unique_ptr<Flight>> flights_, free_;
  std::optional<Error> error_;
  std::atomic<bool> failed_ = false;  // error_ is set
  std::thread thread_;                // last: starts when all else exists
};

}  // namespace hearth
