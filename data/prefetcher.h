// Reads upcoming micro-batches in the background so that the step never waits for files. The plan says which
// samples micro-batch n consists of; batches come out in order whatever the number of threads, and at most
// `depth` are kept. One consumer. What a reader thread throws is rethrown by next() in place of its batch.
// The destructor stops the threads and waits for them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "data/sampler.h"

namespace hearth {

class Prefetcher {
 public:
  using Source = std::function<Sample(int64_t sample_index)>;  // thread-safe; e.g. SampleStream::get
  using Plan = std::function<std::vector<int64_t>(int64_t micro_batch)>;  // thread-safe; empty = the end
  struct Options {
    int64_t first_micro_batch = 0;
    int64_t depth = 4;  // batches read ahead
    int num_threads = 1;
  };
  // `source` and `plan` may capture references; what they refer to must outlive the prefetcher.
  Prefetcher(Source source, Plan plan, const Options& options);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next micro-batch; empty at and after the end. Blocks until it was read.
  std::vector<Sample> next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hearth
