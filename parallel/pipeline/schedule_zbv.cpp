// ZB-V (Qi et al. 2023, "Zero bubble pipeline parallelism", section 6; V-ZB of Qi et al. 2024, "Pipeline
// parallelism with controllable memory"): two chunks a rank in the shape of a V, so that rank 0 holds both
// ends of the model and the last rank its middle. With F = B = W no rank idles between its first and its last
// action, with the peak memory of 1F1B.
//
// In a full pipeline a rank repeats F B W of chunk 0, F B W of chunk 1. Before that, rank r has 2 (P - r) - 1
// forwards of chunk 0 while the first micro goes down and up the V, then r pairs of forwards, then P - r
// rounds of chunk 1 alone. The end mirrors it, with the last weight gradients put off.
#include <algorithm>

#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

void input_then_weight(ActionWriter& list, int chunk) {
  list.backward_input(chunk);
  list.backward_weight();
}

}  // namespace

std::vector<Action> zbv_actions(const ScheduleShape& shape, int rank) {
  // The pattern needs 2P - 1 micros to be whole. With fewer, the same list without the missing micros is in
  // order.
  const int micros = std::max(shape.micros, 2 * shape.stages - 1);
  const int to_turn = shape.stages - rank;  // ranks from here to the turn of the V, this one included
  ActionWriter list(2);
  for (int i = 0; i < 2 * to_turn - 1; ++i) list.forward(0);
  for (int i = 0; i < rank; ++i) {
    list.forward(1);
    list.forward(0);
  }
  for (int i = 0; i < to_turn; ++i) {
    list.forward(1);
    input_then_weight(list, 1);
  }
  while (list.forwards(1) < micros) {
    if (list.forwards(0) < micros) list.forward(0);
    input_then_weight(list, 0);
    list.forward(1);
    input_then_weight(list, 1);
  }
  for (int i = 0; i < rank; ++i) {
    list.backward_input(0);
    list.backward_input(1);
  }
  for (int i = 0; i < to_turn; ++i) input_then_weight(list, 0);
  while (list.weights_pending()) list.backward_weight();

  std::vector<Action> actions = list.take();
  std::erase_if(actions, [&](const Action& action) { return action.micro >= shape.micros; });
  return actions;
}

}  // namespace hearth
