// Inside parallel/pipeline: one function per kind, and the tools that the kinds share. To add a kind: the
// recipe in README.md.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace hearth {

struct ScheduleShape {
  int stages, chunks, micros;
};

// Compute actions of pipeline rank `rank`. Counts are >= 1 and chunks as the row says; whatever else a kind
// asks of them it checks itself (Error{Config}).
using RankActions = std::vector<Action> (*)(const ScheduleShape& shape, int rank);
std::vector<Action> one_f_one_b_actions(const ScheduleShape& shape, int rank);
std::vector<Action> interleaved_actions(const ScheduleShape& shape, int rank);
std::vector<Action> zb_h1_actions(const ScheduleShape& shape, int rank);
std::vector<Action> zbv_actions(const ScheduleShape& shape, int rank);
std::vector<Action> dualpipev_actions(const ScheduleShape& shape, int rank);

// Writes a rank's list. Every published schedule takes the micros of a chunk in order, for forward and for
// backward, so a call names the chunk and the writer counts the micros.
class ActionWriter {
 public:
  explicit ActionWriter(int chunks) : forwards_(static_cast<size_t>(chunks)), backwards_(forwards_) {}

  void forward(int chunk);
  void backward(int chunk);
  void backward_input(int chunk);
  void forward_backward(int chunk, int backward_chunk);
  // BackwardWeight for the oldest BackwardInput that has none yet. There must be one.
  void backward_weight();

  int forwards(int chunk) const { return forwards_[static_cast<size_t>(chunk)]; }
  int backwards(int chunk) const { return backwards_[static_cast<size_t>(chunk)]; }
  bool weights_pending() const { return !pending_.empty(); }
  std::vector<Action> take() { return std::move(actions_); }

 private:
  int next_forward(int chunk) { return forwards_[static_cast<size_t>(chunk)]++; }
  int next_backward(int chunk) { return backwards_[static_cast<size_t>(chunk)]++; }
  std::vector<int> forwards_, backwards_;  // [chunks] micros begun
  std::deque<Action> pending_;             // BackwardWeights to come
  std::vector<Action> actions_;
};

// A compute action as the one or two pieces that others depend on. kind is never ForwardBackward.
struct Piece {
  ActionKind kind;
  int chunk, micro;
};
struct Pieces {
  std::array<Piece, 2> items;
  int count;
  const Piece* begin() const { return items.data(); }
  const Piece* end() const { return items.data() + count; }
};
Pieces pieces(const Action& compute);
// Forward: activations move; Backward and BackwardInput: gradients do; BackwardWeight: nothing does.
inline bool moves_gradient(ActionKind kind) {
  return kind == ActionKind::Backward || kind == ActionKind::BackwardInput;
}

// One tensor on its way between two ranks.
struct Message {
  int from, to;  // ranks
  Action send;   // as it stands in the list of `from`
  Action recv;   // as it stands in the list of `to`
};
// What a piece on `rank` sends, and what it must have received; nothing where the neighbour virtual stage is
// on the same rank or there is none.
std::optional<Message> output_message(const PipelineSchedule& schedule, int rank, const Piece& piece);
std::optional<Message> input_message(const PipelineSchedule& schedule, int rank, const Piece& piece);

}  // namespace hearth
