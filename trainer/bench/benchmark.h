// What a training step of a configuration costs, on random tokens: no dataset, no files. The steps are those
// of trainer/trainer.h (ParallelModel), so a run with its data reaches the same rate as long as reading,
// logging and saving stay off the loop's path. Collective: every rank of the job calls it alike. Not
// thread-safe.
#pragma once

#include <optional>
#include <vector>

#include "base/log.h"
#include "trainer/bench/device_monitor.h"
#include "trainer/bench/kernel_time.h"
#include "trainer/parallel_groups.h"
#include "trainer/parallel_model.h"

namespace hearth {

struct BenchmarkOptions {
  int64_t warm_up = 16, steps = 20;  // a CUDA graph is captured and judged within the first 13 steps
  // Of the documents in a sample, log-normal; 0: one document fills it. Counts with
  // data.reset_attention_mask.
  double mean_document_length = 0;
};

struct BenchmarkResult {
  std::vector<double> step_seconds;   // in order
  double loss = 0;                    // of the last step: random tokens stay near ln(vocab_size)
  int64_t peak_memory_bytes = 0;      // most that tensors held at once
  int64_t reserved_memory_bytes = 0;  // taken from the device: the allocator's most, and beside it
  int64_t allocations = 0;            // calls of the device's allocator during the measured steps
  std::optional<DeviceReadings> device;
  KernelTime kernels;  // of one step, from a few more under the profiler
};

BenchmarkResult benchmark_training(const ExperimentConfig& config, ParallelGroups& groups, at::Device device,
                                   const BenchmarkOptions& options, const OtherModels& others, Log& log);

}  // namespace hearth
