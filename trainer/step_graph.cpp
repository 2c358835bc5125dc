#include "trainer/step_graph.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <utility>

#include "base/error.h"

#ifdef HEARTH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

namespace hearth {
namespace {

constexpr int kWarmUp = 4;    // eager steps: a product that comes once a step is tuned in its third
constexpr int kTimed = 4;     // steps of either way that are timed; the fastest counts
constexpr size_t kForms = 4;  // graphs at most
constexpr int64_t kSpareBytes = int64_t{1} << 30;

// The tensors of a micro-batch that a step reads.
template <class Batch>
auto tensors_of(Batch& batch) {
  std::vector<decltype(&batch.targets_N)> all;
  for (auto* tensor : {&batch.input.ids_N, &batch.input.positions_N, &batch.input.dropout_keys.rows_N,
                       &batch.targets_N, &batch.documents_N})
    if (tensor->defined()) all.push_back(tensor);
  return all;
}

// Two lists of micro-batches of one form are the same work on other values.
std::string form_of(const std::vector<MicroBatch>& batches) {
  std::string form;
  for (const MicroBatch& batch : batches) {
    form +=
        fmt::format("{}x{},{}:", batch.input.layout.batch, batch.input.layout.sequence, batch.num_documents);
    for (const at::Tensor* tensor : tensors_of(batch)) form += fmt::format("{},", tensor->numel());
    if (batch.input.layout.documents) form += batch.input.layout.documents->graph_form();
  }
  return form;
}

// The same micro-batches in memory of their own, which replays read.
std::vector<MicroBatch> copies_of(const std::vector<MicroBatch>& batches) {
  std::vector<MicroBatch> copies = batches;
  for (MicroBatch& batch : copies) {
    for (at::Tensor* tensor : tensors_of(batch)) *tensor = tensor->clone();
    if (auto& documents = batch.input.layout.documents) documents = documents->copy();
  }
  return copies;
}

void copy_into(std::vector<MicroBatch>& fixed, const std::vector<MicroBatch>& batches) {
  for (size_t i = 0; i < fixed.size(); ++i) {
    const auto to = tensors_of(fixed[i]);
    const auto from = tensors_of(batches[i]);
    for (size_t t = 0; t < to.size(); ++t) to[t]->copy_(*from[t]);
    if (const auto& documents = batches[i].input.layout.documents)
      documents->write_over(*fixed[i].input.layout.documents);
  }
}

}  // namespace

struct StepGraph::Impl {
  struct Captured {
    std::vector<MicroBatch> inputs;
    at::cuda::CUDAGraph graph;
    Sums sums;
  };
  using Clock = std::chrono::steady_clock;

  bool measured;
  std::function<int64_t()> activation_bytes;
  Log& log;
  std::map<std::string, Captured> graphs;
  at::cuda::MempoolId_t pool{};
  int64_t steps = 0, captured_at = 0;
  bool off = false;
  bool last_was_plain = false;  // the step before this one neither captured nor began the run
  Clock::time_point last_begin;
  double eager = std::numeric_limits<double>::infinity(), replayed = eager;  // seconds of the fastest step

  void give_up(const std::string& reason) {
    off = true;
    log.info("event=cuda_graph state=off reason=\"{}\"", reason);
    graphs.clear();
    c10::cuda::CUDACachingAllocator::emptyCache();
  }

  // Whether the activations fit twice: a graph keeps its own, and steps of other forms, validation and
  // samples need theirs beside them.
  bool fits() const {
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    c10::cuda::CUDACachingAllocator::emptyCache();
    size_t free = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    const int64_t once = activation_bytes() + activation_bytes() / 16;  // what rounding to blocks may add
    const int64_t needed = 2 * once + kSpareBytes;
    if (static_cast<int64_t>(free) >= needed) return true;
    log.info("event=cuda_graph free_bytes={} needed_bytes={}", free, needed);
    return false;
  }

  Captured& capture(const std::string& form, const std::vector<MicroBatch>& batches, const Step& step) {
    Captured& captured = graphs[form];
    captured.inputs = copies_of(batches);
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    captured.graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    captured.sums = step(captured.inputs);
    captured.graph.capture_end();
    return captured;
  }

  // How long the step before this one took, which ended by now.
  void note_time() {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - last_begin).count();
    last_begin = now;
    if (!std::exchange(last_was_plain, false)) return;
    double& best = graphs.empty() ? eager : replayed;
    best = std::min(best, seconds);
    if (!measured || graphs.empty() || steps != captured_at + kTimed) return;
    if (replayed >= eager)
      return give_up(
          fmt::format("not faster: {:.2f} ms a step, {:.2f} without", 1e3 * replayed, 1e3 * eager));
    log.info("event=cuda_graph state=on step_ms={:.2f} eager_ms={:.2f}", 1e3 * replayed, 1e3 * eager);
  }

  Sums replay(std::vector<MicroBatch> batches, const Step& step) {
    const std::string form = form_of(batches);
    auto found = graphs.find(form);
    if (found == graphs.end()) {
      if (graphs.size() >= kForms) return step(std::move(batches));
      if (graphs.empty()) {
        if (!fits()) {
          give_up("the activations do not fit twice: evaluation and samples need theirs beside the graph's");
          return step(std::move(batches));
        }
        captured_at = steps;
        pool = at::cuda::graph_pool_handle();
      }
      Captured& captured = capture(form, batches, step);
      captured.graph.replay();
      return captured.sums;
    }
    copy_into(found->second.inputs, batches);
    found->second.graph.replay();
    last_was_plain = true;
    return found->second.sums;
  }
};

StepGraph::StepGraph(bool measured, std::function<int64_t()> activation_bytes, Log& log)
    : impl_(new Impl{.measured = measured, .activation_bytes = std::move(activation_bytes), .log = log}) {}

StepGraph::Sums StepGraph::run(std::vector<MicroBatch> batches, const Step& step) {
  Impl& i = *impl_;
  if (i.off) return step(std::move(batches));
  i.note_time();
  ++i.steps;
  if (i.off || i.steps <= kWarmUp + kTimed) {
    i.last_was_plain = i.steps > kWarmUp;
    return step(std::move(batches));
  }
  return i.replay(std::move(batches), step);
}

}  // namespace hearth

#else

namespace hearth {

struct StepGraph::Impl {};
StepGraph::StepGraph(bool, std::function<int64_t()>, Log&) {}
StepGraph::Sums StepGraph::run(std::vector<MicroBatch> batches, const Step& step) {
  return step(std::move(batches));
}

}  // namespace hearth

#endif

namespace hearth {

StepGraph::~StepGraph() = default;

}  // namespace hearth
