// Interleaved 1F1B (Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters
// using Megatron-LM", section 2.2): rank r holds virtual stages r, P + r, 2P + r, ...
//
// Micros go in groups of P: a rank runs P micros of its chunk 0, the same P of chunk 1, and so on, then the
// next group; backward in the same way from the last chunk to the first. The warm-up of rank r is 2 (P - r -
// 1) + (V - 1) P forwards of a chunk.
#include <algorithm>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {

std::vector<Action> interleaved_actions(const ScheduleShape& shape, int rank) {
  const auto [stages, chunks, micros] = shape;
  HEARTH_CHECK(chunks >= 2, Config,
               "pipeline schedule interleaved needs at least 2 chunks per rank, got {}: raise "
               "virtual_pipeline_model_parallel_size, or use 1f1b",
               chunks);
  HEARTH_CHECK(
      micros % stages == 0, Config,
      "pipeline schedule interleaved needs a number of micro-batches per step that is a multiple of the {} "
      "stages, got {}: change global_batch_size, or use another schedule",
      stages, micros);
  ActionWriter list(chunks);
  const int total = micros * chunks;
  const int warm_up = 2 * (stages - rank - 1) + (chunks - 1) * stages;
  const auto chunk_of = [&](int k) { return k % (stages * chunks) / stages; };
  int forwards = 0, backwards = 0;
  while (backwards < total) {
    if (forwards < total && forwards - backwards <= warm_up) {
      list.forward(chunk_of(forwards++));
    } else {
      list.backward(chunks - 1 - chunk_of(backwards++));
    }
  }
  return list.take();
}

}  // namespace hearth
