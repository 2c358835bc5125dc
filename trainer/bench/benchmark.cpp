#include "trainer/bench/benchmark.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "base/rng.h"
#include "trainer/device.h"

namespace hearth {
namespace {

// Lengths as of text on the web: log-normal with a wide spread.
std::vector<int32_t> document_starts(const CounterRng& rng, uint64_t& draw, int64_t seq_length,
                                     double mean_length) {
  constexpr double kSpread = 1.0;
  std::vector<int32_t> starts{0};
  if (mean_length <= 0) return starts;
  double at = 0;
  while (true) {
    at += std::max(1.0,
                   std::round(mean_length * std::exp(kSpread * rng.normal(draw++) - kSpread * kSpread / 2)));
    if (at >= static_cast<double>(seq_length)) return starts;
    starts.push_back(static_cast<int32_t>(at));
  }
}

std::vector<Sample> random_samples(const ExperimentConfig& config, int64_t stream, double mean_length) {
  const CounterRng rng(static_cast<uint64_t>(config.training.seed), static_cast<uint64_t>(stream));
  uint64_t draw = 0;
  std::vector<Sample> samples(static_cast<size_t>(config.training.micro_batch_size));
  for (Sample& sample : samples) {
    for (int64_t i = 0; i <= config.data.seq_length; ++i)
      sample.tokens.push_back(
          static_cast<int32_t>(rng.bits(draw++) % static_cast<uint64_t>(config.model.vocab_size)));
    sample.loss_mask.assign(static_cast<size_t>(config.data.seq_length), 1);
    sample.document_starts = document_starts(rng, draw, config.data.seq_length, mean_length);
    sample.number = stream;
  }
  return samples;
}

class Bench {
 public:
  Bench(const ExperimentConfig& config, ParallelGroups& groups, at::Device device,
        const BenchmarkOptions& options, const OtherModels& others, Log& log)
      : config_(config), device_(device), model_(config, groups, device, others) {
    model_.allow_graphs(config, log);
    model_.start(static_cast<uint64_t>(config.training.seed), others.init_from);
    // Every step has samples of its own, as in training: seen again they would be learnt by heart.
    const int64_t count =
        model_.micro_batches_per_step() * (options.warm_up + options.steps + kTracedRepeats);
    for (int64_t i = 0; i < count; ++i)
      samples_.push_back(
          random_samples(config, groups.coordinate(MeshAxis::Dp) * count + i, options.mean_document_length));
  }

  // Seconds of one step.
  double step() {
    const auto begin = std::chrono::steady_clock::now();
    const DocumentMask mask = document_mask(config_.data);
    const auto next = [&] { return model_.training_micro_batch(samples_.at(taken_++), mask); };
    const StepTotals totals =
        model_.sum_over_ranks(model_.forward_backward(next, {}), /*stop_requested=*/false);
    ++steps_;
    // Slow enough that hundreds of steps on random tokens stay finite.
    HEARTH_CHECK(model_.update(totals, /*learning_rate=*/1e-5, config_.optimizer.clip_grad), Numeric,
                 "step {} of the benchmark gave a loss of {} and a squared gradient norm of {}", steps_,
                 totals.loss_sum, totals.squared_norm);
    loss_ = totals.lm_loss();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  void synchronize() { hearth::synchronize(device_); }
  double loss() const { return loss_; }
  int64_t peak_memory() { return model_.parameters().memory().peak_total(); }
  int64_t made_outside_allocator() { return model_.parameters().memory().made_outside_allocator(); }

 private:
  const ExperimentConfig& config_;
  at::Device device_;
  ParallelModel model_;
  std::vector<std::vector<Sample>> samples_;  // of each micro-batch
  size_t taken_ = 0;
  int64_t steps_ = 0;
  double loss_ = 0;
};

}  // namespace

BenchmarkResult benchmark_training(const ExperimentConfig& config, ParallelGroups& groups, at::Device device,
                                   const BenchmarkOptions& options, const OtherModels& others, Log& log) {
  Bench bench(config, groups, device, options, others, log);
  BenchmarkResult result;
  for (int64_t i = 0; i < options.warm_up; ++i) {
    const double seconds = bench.step();
    log.info("event=bench_warm_up step={} of={} seconds={:.4f}", i + 1, options.warm_up, seconds);
  }
  // A step ends with its update still on the device: from here to the end of the last one everything counts.
  bench.synchronize();
  const int64_t calls_before = device_allocator_calls(device);
  DeviceMonitor monitor(device);
  for (int64_t i = 0; i < options.steps; ++i) {
    double seconds = bench.step();
    if (i + 1 == options.steps) {
      const auto begin = std::chrono::steady_clock::now();
      bench.synchronize();
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    result.step_seconds.push_back(seconds);
  }
  result.device = monitor.stop();
  result.allocations = device_allocator_calls(device) - calls_before;
  result.kernels = kernel_time(device, [&] { bench.step(); });
  result.loss = bench.loss();
  result.peak_memory_bytes = bench.peak_memory();
  result.reserved_memory_bytes = peak_reserved_memory(device) + bench.made_outside_allocator();
  return result;
}

}  // namespace hearth
