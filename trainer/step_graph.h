// Forward and backward of a whole step as one CUDA graph: replaying it costs the host one call instead of
// thousands of launches, which small models and small micro-batches wait for. Eager steps come first (they
// allocate, tune and load what a capture must not), then the step is captured and both ways are timed; the
// faster one stays. A step whose micro-batches have another form than those captured gets a graph of its own,
// a few at most; the others run eagerly. The graphs of one step share their memory. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "trainer/micro_batch.h"

namespace hearth {

class StepGraph {
 public:
  // What a step leaves on the device.
  struct Sums {
    at::Tensor sums, squared_norm;
  };
  // One step over the given micro-batches, every time in the same order of work. In a capture its result
  // belongs to the graph: every replay writes it anew.
  using Step = std::function<Sums(std::vector<MicroBatch>)>;

  // `measured`: stay with a graph only where it is faster. `activation_bytes`: what the step's tensors take
  // at most, once it has run. Messages go to `log`.
  StepGraph(bool measured, std::function<int64_t()> activation_bytes, Log& log);
  ~StepGraph();
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;

  Sums run(std::vector<MicroBatch> batches, const Step& step);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
