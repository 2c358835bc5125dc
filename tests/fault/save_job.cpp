// The job under test: launch frame, run lock, checkpoints and votes are the real ones; the model is a vector
// that a pure function changes each step, so that a run that was killed and resumed can be compared with one
// that was not, bit for bit. Usage: save_job RUN_FOLDER STEPS SAVE_INTERVAL STEP_MILLISECONDS. Faults:
// HEARTH_FAULT (base/fault_plan.h). Rank 0 appends "attempt step loss" to RUN_FOLDER/journal after each step.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fault_plan.h"
#include "base/hash.h"
#include "base/log.h"
#include "parallel/bootstrap.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/checkpoint/run_lock.h"

using namespace hearth;

namespace {

constexpr int64_t kElements = 100'003;  // a prime: no split of it is even

struct Settings {
  std::string run;
  int64_t steps = 0, save_interval = 0, step_ms = 0;
};

// This rank's elements [begin, end) of the one tensor.
struct State {
  int64_t begin = 0, end = 0, step = 0;
  std::vector<float> x;
};

void advance(State& state) {
  ++state.step;
  for (int64_t i = state.begin; i < state.end; ++i) {
    float& x = state.x[static_cast<size_t>(i - state.begin)];
    x = x * 0.75f + static_cast<float>((i * 31 + state.step * 17) % 101);
  }
}

// Depends on every element and not on the number of ranks.
std::string loss_text(const State& state, ControlPlane& control) {
  const auto bytes = std::as_bytes(std::span(state.x));
  std::string mine(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::string all;
  for (const auto& part : control.all_gather(mine, "job.loss")) all += part;
  return xxh3_128_hex(all);
}

TensorPiece piece_of(const State& state) {
  TensorPiece piece = TensorPiece::whole("x", DType::F32, {kElements});
  piece.begin = state.begin;
  piece.end = state.end;
  return piece;
}

void save(CheckpointSaver& saver, const State& state) {
  Snapshot* snapshot = saver.begin({state.step, "", "", "", ""}, {piece_of(state)});
  if (snapshot == nullptr) return;
  std::memcpy(snapshot->data(0), state.x.data(), state.x.size() * sizeof(float));
  saver.commit_async("{}");
}

State start_state(FileSystem& fs, ControlPlane& control, Log& log, const Settings& settings) {
  State state;
  state.begin = kElements * control.rank() / control.world_size();
  state.end = kElements * (control.rank() + 1) / control.world_size();
  state.x.assign(static_cast<size_t>(state.end - state.begin), 0.f);
  const auto found = find_checkpoint(fs, control, log, settings.run);
  if (found == nullptr) return state;
  found->read_elements("x", state.begin, state.end, DType::F32, state.x.data());
  state.step = found->step();
  log.info("event=resumed step={}", state.step);
  return state;
}

int run(const Settings& settings, Job& job) {
  ControlPlane& control = *job.control;
  const auto fs = make_posix_file_system();
  Log log({.rank = control.rank(), .world_size = control.world_size(), .level = LogLevel::Info, .file = ""});
  const char* plan = std::getenv("HEARTH_FAULT");
  FaultInjector faults(parse_fault_plan(plan == nullptr ? "" : plan), control.rank());
  faults.hit("init");
  std::unique_ptr<RunLock> lock;
  if (control.rank() == 0)
    lock = RunLock::acquire(*fs, log, settings.run, this_process(""), TakeOver::DeadOnly);
  CheckpointSaverOptions options;
  options.folder = settings.run + "/checkpoints";
  options.keep_latest_k = 2;
  options.attempt = control.all_reduce_max(lock ? lock->attempt() : 0, "job.attempt");
  options.at_point = [&](std::string_view point) { faults.hit(point); };
  if (lock) options.check_lock = [&] { lock->check(); };
  CheckpointSaver saver(*fs, control, log, options);
  State state = start_state(*fs, control, log, settings);
  std::ofstream journal;
  if (control.rank() == 0) journal.open(settings.run + "/journal", std::ios::app);
  while (state.step < settings.steps) {
    faults.set_step(state.step + 1);
    advance(state);
    std::this_thread::sleep_for(std::chrono::milliseconds(settings.step_ms));
    const std::string loss = loss_text(state, control);
    if (control.rank() == 0) journal << options.attempt << " " << state.step << " " << loss << std::endl;
    faults.hit("step.end");
    saver.poll();
    if (state.step % settings.save_interval == 0 || state.step == settings.steps) save(saver, state);
  }
  faults.hit("finalize");
  saver.finish();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: save_job RUN_FOLDER STEPS SAVE_INTERVAL STEP_MILLISECONDS\n");
    return 2;
  }
  const Settings settings{argv[1], std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4])};
  const auto environment = LaunchEnvironment::read([](const char* name) { return std::getenv(name); });
  return run_job(
      environment, {.timeout_s = 60, .on_fatal = {}}, [&](Job& job) { return run(settings, job); },
      [](const Error& error) { std::fprintf(stderr, "error: %s\n", error.what()); });
}
