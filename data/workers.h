// Numbered tasks on a few threads. When tasks fail, the failure of the lowest number is rethrown, so that the
// error a user sees does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>

namespace hearth {

// Cores this process may run on (its affinity mask, which launchers narrow), at least 1.
int available_cores();

// Calls task(i) once for each i in [0, count), handed out in ascending order. After a failure no further task
// begins; those begun are finished. Returns when all threads have ended.
void run_tasks(int num_threads, int64_t count, const std::function<void(int64_t)>& task);

// The same for a stream of unknown length: claim() is called by one thread at a time and returns the next
// task, or an empty function at the end. What claim() throws counts as the failure of the next number.
void run_stream(int num_threads, const std::function<std::function<void()>()>& claim);

}  // namespace hearth
