#include "data/prefetcher.h"

#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"

namespace hearth {

struct Prefetcher::State {
  struct Batch {
    std::vector<Sample> samples;
    std::exception_ptr error;
  };
  Source source;
  Plan plan;
  int64_t depth = 1;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<int64_t, Batch> ready;  // by micro-batch
  int64_t next_to_read = 0, next_to_give = 0;
  bool stop = false;
  std::vector<std::thread> threads;

  // Claims micro-batches in order and reads them outside the lock.
  void work() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return stop || next_to_read < next_to_give + depth; });
      if (stop) return;
      const int64_t mine = next_to_read++;
      lock.unlock();
      Batch batch = read(mine);
      lock.lock();
      const bool last = batch.samples.empty();
      ready.emplace(mine, std::move(batch));
      changed.notify_all();
      if (last) return;  // the end or an error: other threads find the same on their next claim
    }
  }
  Batch read(int64_t micro_batch) const {
    Batch batch;
    try {
      for (const int64_t index : plan(micro_batch)) batch.samples.push_back(source(index));
    } catch (...) {
      batch.samples.clear();
      batch.error = std::current_exception();
    }
    return batch;
  }
};

Prefetcher::Prefetcher(Source source, Plan plan, const Options& options) : state_(std::make_unique<State>()) {
  HEARTH_REQUIRE(options.depth >= 1 && options.num_threads >= 1,
                 "prefetcher: depth {} and threads {} must be >= 1", options.depth, options.num_threads);
  state_->source = std::move(source);
  state_->plan = std::move(plan);
  state_->depth = options.depth;
  state_->next_to_read = state_->next_to_give = options.first_micro_batch;
  for (int i = 0; i < options.num_threads; ++i)
    state_->threads.emplace_back([state = state_.get()] { state->work(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  for (auto& thread : state_->threads) thread.join();
}

std::vector<Sample> Prefetcher::next() {
  std::unique_lock lock(state_->mutex);
  auto& ready = state_->ready;
  state_->changed.wait(lock, [&] { return ready.count(state_->next_to_give) > 0; });
  const auto found = ready.find(state_->next_to_give);
  if (found->second.error) std::rethrow_exception(found->second.error);  // stays: asked again, it fails again
  if (found->second.samples.empty()) return {};                          // the end stays the end
  std::vector<Sample> samples = std::move(found->second.samples);
  ready.erase(found);
  ++state_->next_to_give;
  state_->changed.notify_all();
  return samples;
}

}  // namespace hearth
