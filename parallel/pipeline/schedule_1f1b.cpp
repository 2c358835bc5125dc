// 1F1B with a flush: PipeDream-flush (Narayanan et al. 2021, "Memory-efficient pipeline-parallel DNN
// training"), the default of Megatron-LM (Narayanan et al. 2021, "Efficient large-scale language model
// training", section 2.2).
//
// Rank r starts with P - r - 1 forwards, as many as the first micro needs to reach the last rank and come
// back, and then holds that many plus one: one forward, one backward.
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {

std::vector<Action> one_f_one_b_actions(const ScheduleShape& shape, int rank) {
  ActionWriter list(1);
  const int warm_up = shape.stages - rank - 1;
  while (list.backwards(0) < shape.micros) {
    const int in_flight = list.forwards(0) - list.backwards(0);
    if (list.forwards(0) < shape.micros && in_flight <= warm_up) {
      list.forward(0);
    } else {
      list.backward(0);
    }
  }
  return list.take();
}

}  // namespace hearth
