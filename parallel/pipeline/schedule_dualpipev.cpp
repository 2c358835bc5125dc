// DualPipeV (github.com/deepseek-ai/DualPipe; the "cut-in-half" of DualPipe by Qi et al., Sea AI Lab): the V
// of ZB-V, with a forward of one chunk and a full backward of the other run as one overlapped action in the
// full pipeline. The phases and their counts are those of that project; it asks for at least 2P micros.
#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

void warm_up(ActionWriter& list, int rank, int after) {
  for (int i = 0; i < 2 * after; ++i) list.forward(0);
  for (int i = 0; i <= rank; ++i) {
    list.forward(0);
    list.forward(1);
  }
  for (int i = 0; i < after; ++i) {
    list.backward_input(1);
    list.backward_weight();
    list.forward(1);
  }
}

void full_pipeline(ActionWriter& list, int rounds, int after) {
  for (int i = 0; i < rounds; ++i) {
    if (i == 0 && after == 0) {
      // The first backward of all: at the turn of the V it needs nothing from others, and its gradient is
      // waited for.
      list.forward(0);
      list.backward(1);
    } else {
      list.forward_backward(0, 1);
    }
    list.forward_backward(1, 0);
  }
  for (int i = 0; i < after; ++i) {
    list.backward(1);
    list.forward_backward(1, 0);
  }
}

// 2 (rank + 1) backwards, of which the later half puts its weight gradients off until there is nothing else
// to do.
void cool_down(ActionWriter& list, int rank, int after) {
  for (int i = 0; i < 2 * (rank + 1); ++i) {
    const int chunk = i % 2 == 0 ? 1 : 0;
    if (i <= rank) {
      list.backward(chunk);
    } else {
      list.backward_input(chunk);
    }
  }
  for (int i = 0; i < after; ++i) {
    list.backward_weight();
    list.backward_input(0);
  }
  while (list.weights_pending()) list.backward_weight();
}

}  // namespace

std::vector<Action> dualpipev_actions(const ScheduleShape& shape, int rank) {
  HEARTH_CHECK(
      shape.micros >= 2 * shape.stages, Config,
      "pipeline schedule dualpipev needs at least {} micro-batches per step for {} stages, got {}: raise "
      "global_batch_size, or use zbv, which takes any number",
      2 * shape.stages, shape.stages, shape.micros);
  const int after = shape.stages - rank - 1;  // ranks between here and the turn of the V
  ActionWriter list(2);
  warm_up(list, rank, after);
  full_pipeline(list, shape.micros - 2 * shape.stages + rank + 1, after);
  cool_down(list, rank, after);
  return list.take();
}

}  // namespace hearth
