#include "data/workers.h"

#include <sched.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace hearth {

int available_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  const int cores = sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask) : 0;
  return cores > 0 ? cores
                   : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));  // over 1024 cores
}

void run_stream(int num_threads, const std::function<std::function<void()>()>& claim) {
  std::mutex mutex;
  int64_t next = 0, failed = INT64_MAX;
  std::exception_ptr failure;
  bool ended = false;
  const auto record = [&](int64_t number) {  // under the lock
    if (number < failed) failed = number, failure = std::current_exception();
    ended = true;
  };
  const auto work = [&] {
    std::unique_lock lock(mutex);
    while (!ended) {
      const int64_t number = next++;
      std::function<void()> task;
      try {
        task = claim();
      } catch (...) {
        record(number);
      }
      if (!task) {
        ended = true;
        return;
      }
      lock.unlock();
      try {
        task();
        task = nullptr;  // frees what it holds outside the lock
        lock.lock();
      } catch (...) {
        lock.lock();
        record(number);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (auto& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

void run_tasks(int num_threads, int64_t count, const std::function<void(int64_t)>& task) {
  int64_t next = 0;
  run_stream(static_cast<int>(std::clamp<int64_t>(num_threads, 1, std::max<int64_t>(count, 1))),
             [&]() -> std::function<void()> {
               if (next == count) return nullptr;
               return [&task, i = next++] { task(i); };
             });
}

}  // namespace hearth
