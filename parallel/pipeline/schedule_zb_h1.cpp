// ZB-H1 (Qi et al. 2023, "Zero bubble pipeline parallelism", section 2.2; the handcrafted schedule that keeps
// the peak memory of 1F1B). DeepSeek calls it ZB1P.
//
// The order of 1F1B with the backward cut in two. Rank r puts each weight gradient off by r micros, so that
// later ranks hand input gradients down sooner and the weight gradients fill the end. A rank then holds what
// P micros need at most, as rank 0 of 1F1B does.
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {

std::vector<Action> zb_h1_actions(const ScheduleShape& shape, int rank) {
  ActionWriter list(1);
  const int warm_up = shape.stages - rank - 1;
  while (list.backwards(0) < shape.micros) {
    const int in_flight = list.forwards(0) - list.backwards(0);
    if (list.forwards(0) < shape.micros && in_flight <= warm_up) {
      list.forward(0);
      continue;
    }
    list.backward_input(0);
    if (list.backwards(0) > rank) list.backward_weight();
  }
  while (list.weights_pending()) list.backward_weight();
  return list.take();
}

}  // namespace hearth
