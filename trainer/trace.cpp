#include "trainer/trace.h"

#include <fmt/core.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <unistd.h>

#include <chrono>
#include <set>

#include "base/error.h"
#include "trainer/device.h"

namespace hearth {
namespace {

namespace profiler = torch::autograd::profiler;

const profiler::ProfilerConfig& profiler_config() {
  static const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  return config;
}

std::set<profiler::ActivityType> activities(at::Device device) {
  std::set<profiler::ActivityType> kinds{profiler::ActivityType::CPU};
  if (device.is_cuda()) kinds.insert(profiler::ActivityType::CUDA);
  return kinds;
}

// The clock of kineto's times.
int64_t now_ns() {
  using std::chrono::system_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(system_clock::now().time_since_epoch()).count();
}

std::string place(const Mesh& mesh, int rank) {
  std::string text;
  for (const MeshAxis axis : {MeshAxis::Pp, MeshAxis::Dp, MeshAxis::Cp, MeshAxis::Tp})
    if (mesh.size(axis) > 1)
      text += fmt::format("{}{}{}", text.empty() ? "" : " ", name(axis), mesh.coordinate(rank, axis));
  return text.empty() ? "alone" : text;
}

}  // namespace

StepTracer::StepTracer(StepTracerInputs inputs) : in_(std::move(inputs)) {
  in_.fs.create_directories(in_.folder);
}

StepTracer::~StepTracer() {
  if (state_ != State::Recording) return;
  in_.recorder.observe(nullptr);
  open_.clear();
  step_span_.reset();
  try {
    profiler::disableProfiler();
  } catch (const std::exception& error) {
    in_.log.warning("event=trace_lost rank={} reason=\"{}\"", in_.rank, error.what());
  }
}

void StepTracer::begin_step(int64_t step) {
  const ProfileConfig& c = in_.config;
  if (state_ == State::Done || step >= c.step_end) return;
  if (step + 1 >= c.step_start && state_ == State::Waiting) prepare();
  if (step < c.step_start) return;
  if (state_ == State::Prepared) start();
  step_span_ = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
  if (step_span_->isActive()) step_span_->before(fmt::format("step {}", step));
}

void StepTracer::end_step(int64_t step) {
  if (state_ != State::Recording) return;
  synchronize(in_.device);  // the step's kernels belong to it
  step_span_.reset();
  ++steps_;
  if (step + 1 >= in_.config.step_end) stop();
}

void StepTracer::finish() {
  if (state_ == State::Recording) stop();
}

// Starting CUPTI takes long: a step ahead of the first that is recorded.
void StepTracer::prepare() {
  profiler::prepareProfiler(profiler_config(), activities(in_.device));
  state_ = State::Prepared;
}

void StepTracer::start() {
  synchronize(in_.device);
  profiler::enableProfiler(profiler_config(), activities(in_.device));
  state_ = State::Recording;
  in_.recorder.observe(this);
}

void StepTracer::stop() {
  in_.recorder.observe(nullptr);
  synchronize(in_.device);
  open_.clear();
  state_ = State::Done;
  const auto result = profiler::disableProfiler();
  const int64_t end = now_ns();
  for (TracedCall& call : calls_)
    if (call.end_ns == 0) call.end_ns = end;  // still under way
  const std::string profiled = fmt::format("{}/rank_{:04d}.kineto.json", in_.folder, in_.rank);
  result->save(profiled);
  write(profiled);
}

// A trace that cannot be written is no reason to end the training.
void StepTracer::write(const std::string& profiled) {
  const std::string file = fmt::format("{}/rank_{:04d}.json", in_.folder, in_.rank);
  try {
    const nlohmann::json trace =
        rank_trace(nlohmann::json::parse(in_.fs.read_text(profiled)), calls_,
                   {.rank = in_.rank, .place = place(in_.mesh, in_.rank), .host_process = ::getpid()});
    in_.fs.write_atomically(file, trace.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    in_.fs.remove(profiled);
    in_.log.info("event=trace_written file={} steps={} calls={} events={}", file, steps_, calls_.size(),
                 trace["traceEvents"].size());
  } catch (const std::exception& error) {
    in_.log.warning("event=trace_lost file={} profiler_file={} reason=\"{}\"", file, profiled, error.what());
  }
}

// A host span around the launch: the profiler notes it with the kernels that are launched inside.
void StepTracer::begin(uint64_t id, const FlightRecorder::Call& call) {
  auto span = std::make_unique<at::RecordFunction>(at::RecordScope::FUNCTION);
  if (span->isActive()) span->before(span_name(call.op, call.site, id));
  const std::lock_guard lock(mutex_);
  index_of_[id] = calls_.size();
  calls_.push_back({.id = id,
                    .op = std::string(call.op),
                    .site = std::string(call.site),
                    .group = std::string(call.group),
                    .seq = call.seq,
                    .size_bytes = call.size_bytes,
                    .begin_ns = now_ns()});
  open_[id] = {std::move(span), std::this_thread::get_id()};
}

void StepTracer::end(uint64_t id) {
  const int64_t now = now_ns();
  close_span(id);
  const std::lock_guard lock(mutex_);
  const auto place = index_of_.find(id);
  if (place != index_of_.end()) calls_[place->second].end_ns = now;
}

// Spans of one thread must nest, and only their own thread may end them.
void StepTracer::close_span(uint64_t id) {
  std::unique_ptr<at::RecordFunction> ended;
  const std::lock_guard lock(mutex_);
  const auto open = open_.find(id);
  if (open == open_.end() || open->second.thread != std::this_thread::get_id()) return;
  ended = std::move(open->second.span);
  open_.erase(open);
}

}  // namespace hearth
