// Records what one rank does in a few training steps: operators, pipeline actions, calls between ranks by
// name, and on a GPU every kernel with its stream. Recorded by kineto, the profiler inside LibTorch (kernels
// through CUPTI); names and the calls without a kernel are added when the file is written
// (trainer/trace_events.h). Only one in a process at a time. Where no trace was asked for there is no
// StepTracer, and a call costs the flight recorder one load. Not thread-safe, but calls of other threads
// (autograd, the NCCL watchdog) are recorded too.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/file_system.h"
#include "base/log.h"
#include "parallel/flight_recorder.h"
#include "parallel/mesh.h"
#include "trainer/profile_config.h"
#include "trainer/trace_events.h"

namespace hearth {

struct StepTracerInputs {
  ProfileConfig config;
  FlightRecorder& recorder;
  FileSystem& fs;
  Log& log;
  at::Device device;
  const Mesh& mesh;
  int rank = 0;
  std::string folder;  // the trace goes to folder/rank_NNNN.json
};

class StepTracer final : private FlightRecorder::Observer {
 public:
  explicit StepTracer(StepTracerInputs inputs);
  ~StepTracer() override;  // what was recorded but not written is lost
  StepTracer(const StepTracer&) = delete;
  StepTracer& operator=(const StepTracer&) = delete;

  // Around each step. The trace starts and ends here, with an idle device; end_step of the last step writes
  // the file.
  void begin_step(int64_t step);
  void end_step(int64_t step);
  // After the last step: writes what the end of training cut short.
  void finish();

 private:
  struct OpenSpan {
    std::unique_ptr<at::RecordFunction> span;
    std::thread::id thread;
  };
  void begin(uint64_t id, const FlightRecorder::Call& call) override;
  void issued(uint64_t id) override { close_span(id); }
  void end(uint64_t id) override;
  void close_span(uint64_t id);
  void prepare();
  void start();
  void stop();
  void write(const std::string& profiled);

  StepTracerInputs in_;
  enum class State { Waiting, Prepared, Recording, Done } state_ = State::Waiting;
  std::unique_ptr<at::RecordFunction> step_span_;
  int64_t steps_ = 0;
  std::mutex mutex_;  // of what calls of any thread change
  std::vector<TracedCall> calls_;
  std::unordered_map<uint64_t, size_t> index_of_;  // call id -> place in calls_
  std::unordered_map<uint64_t, OpenSpan> open_;
};

}  // namespace hearth
