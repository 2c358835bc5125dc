#include "parallel/nccl_watchdog.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "parallel/nccl_calls.h"

namespace hearth {
namespace {
// Short beside any deadline, long beside the cost of a look (a few microseconds per flight).
constexpr auto kTick = std::chrono::milliseconds(50);
}  // namespace

NcclWatchdog::NcclWatchdog(FlightRecorder& recorder, Options options)
    : recorder_(recorder), options_(std::move(options)), thread_([this] { run(); }) {}

NcclWatchdog::~NcclWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void NcclWatchdog::watch(ncclComm_t comm) {
  const std::lock_guard lock(mutex_);
  comm_ = comm;
}

bool NcclWatchdog::unwatch() {
  const std::lock_guard lock(mutex_);
  comm_ = nullptr;
  return aborted_;
}

NcclWatchdog::Flight& NcclWatchdog::begin(uint64_t id, std::string what) {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    free_.push_back(std::make_unique<Flight>());
    free_.back()->done = make_event();
  }
  flights_.push_back(std::move(free_.back()));
  free_.pop_back();
  Flight& flight = *flights_.back();
  flight.id = id;
  flight.what = std::move(what);
  flight.enqueued = flight.complete = flight.released = false;
  const std::chrono::duration<double> patience(options_.timeout_s);
  flight.deadline =
      FlightRecorder::Clock::now() + std::chrono::duration_cast<FlightRecorder::Clock::duration>(patience);
  return flight;
}

void NcclWatchdog::enqueued(Flight& flight) {
  const std::lock_guard lock(mutex_);
  flight.enqueued = true;
}

void NcclWatchdog::completed(Flight& flight) {
  const std::lock_guard lock(mutex_);
  if (!flight.complete) recorder_.end(flight.id);
  flight.complete = true;
}

void NcclWatchdog::release(Flight& flight) {
  const std::lock_guard lock(mutex_);
  flight.released = true;
}

bool NcclWatchdog::idle() {
  const std::lock_guard lock(mutex_);
  return std::all_of(flights_.begin(), flights_.end(), [](const auto& flight) { return flight->complete; });
}

void NcclWatchdog::check() {
  if (!failed_) return;
  const std::lock_guard lock(mutex_);
  throw Error(*error_);
}

void NcclWatchdog::run() {
  cudaSetDevice(options_.device);
  // Event queries of this thread must not disturb a CUDA graph that the main thread captures.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!failed_) {
      if (const auto error = inspect()) end(*error);
    }
    changed_.wait_for(lock, kTick, [this] { return stop_; });
  }
}

// Both with mutex_ held.
std::optional<Error> NcclWatchdog::inspect() {
  if (comm_ != nullptr) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = ncclCommGetAsyncError(comm_, &state);
    if (code == ncclSuccess) state = state == ncclInProgress ? ncclSuccess : state;
    if (code != ncclSuccess || state != ncclSuccess)
      return Error(ErrorKind::Peer, fmt::format("NCCL reports {}: {}; pending here: {}",
                                                ncclGetErrorString(code != ncclSuccess ? code : state),
                                                ncclGetLastError(comm_), recorder_.describe_pending()));
  }
  for (auto& flight : flights_)
    if (auto error = inspect(*flight)) return error;
  for (auto& flight : flights_)
    if (flight->complete && flight->released) free_.push_back(std::move(flight));
  std::erase(flights_, nullptr);
  return std::nullopt;
}

std::optional<Error> NcclWatchdog::inspect(Flight& flight) {
  if (flight.complete) return std::nullopt;
  const cudaError_t code = flight.enqueued ? cudaEventQuery(flight.done.get()) : cudaErrorNotReady;
  if (code == cudaSuccess) {
    flight.complete = true;
    recorder_.end(flight.id);
    return std::nullopt;
  }
  if (code != cudaErrorNotReady) {
    recorder_.fail(flight.id);
    return Error(ErrorKind::Cuda,
                 fmt::format("{}: the device failed: {}", flight.what, cudaGetErrorString(code)));
  }
  if (FlightRecorder::Clock::now() < flight.deadline) return std::nullopt;
  const std::string pending = recorder_.describe_pending();
  const std::string text = fmt::format(
      "{}: not finished {:.1f} s after it was issued: another rank has not entered it, or the work before it "
      "on this device hangs",
      flight.what, options_.timeout_s);
  recorder_.raise_alarm(ErrorKind::Timeout, text);
  recorder_.fail(flight.id);
  return Error(ErrorKind::Timeout, fmt::format("{}; pending here: {}", text, pending));
}

void NcclWatchdog::end(const Error& error) {
  if (options_.on_fatal) {
    options_.on_fatal(error, recorder_);
    // No destructor and no MPI call: the main thread may sit in a device call, and MPI is its alone. The
    // launcher sees the exit code and ends the other ranks.
    ::_exit(exit_code(error.kind()));
  }
  error_ = error;
  failed_ = true;
  if (comm_ == nullptr) return;
  aborted_ = true;
  abort_in_background(comm_);  // the main thread gets out of its device call
  comm_ = nullptr;
}

}  // namespace hearth
