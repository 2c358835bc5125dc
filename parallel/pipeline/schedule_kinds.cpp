#include "parallel/pipeline/schedule_kinds.h"

#include "base/error.h"

namespace hearth {

void ActionWriter::forward(int chunk) {
  actions_.push_back({ActionKind::Forward, chunk, next_forward(chunk)});
}

void ActionWriter::backward(int chunk) {
  actions_.push_back({ActionKind::Backward, chunk, next_backward(chunk)});
}

void ActionWriter::backward_input(int chunk) {
  const int micro = next_backward(chunk);
  actions_.push_back({ActionKind::BackwardInput, chunk, micro});
  pending_.push_back({ActionKind::BackwardWeight, chunk, micro});
}

void ActionWriter::forward_backward(int chunk, int backward_chunk) {
  actions_.push_back({ActionKind::ForwardBackward, chunk, next_forward(chunk), backward_chunk,
                      next_backward(backward_chunk)});
}

void ActionWriter::backward_weight() {
  HEARTH_ASSERT(!pending_.empty());
  actions_.push_back(pending_.front());
  pending_.pop_front();
}

Pieces pieces(const Action& compute) {
  HEARTH_ASSERT(!is_transfer(compute));
  if (compute.kind != ActionKind::ForwardBackward)
    return {{Piece{compute.kind, compute.chunk, compute.micro}, Piece{}}, 1};
  return {{Piece{ActionKind::Forward, compute.chunk, compute.micro},
           Piece{ActionKind::Backward, compute.backward_chunk, compute.backward_micro}},
          2};
}

std::optional<Message> output_message(const PipelineSchedule& schedule, int rank, const Piece& piece) {
  if (piece.kind == ActionKind::BackwardWeight) return std::nullopt;
  const bool gradient = moves_gradient(piece.kind);
  const int neighbour = schedule.virtual_stage(rank, piece.chunk) + (gradient ? -1 : 1);
  if (neighbour < 0 || neighbour >= schedule.virtual_stages()) return std::nullopt;
  const auto to = schedule.place(neighbour);
  if (to.rank == rank) return std::nullopt;
  return Message{
      rank, to.rank,
      Action{gradient ? ActionKind::SendBackward : ActionKind::SendForward, piece.chunk, piece.micro},
      Action{gradient ? ActionKind::RecvBackward : ActionKind::RecvForward, to.chunk, piece.micro}};
}

std::optional<Message> input_message(const PipelineSchedule& schedule, int rank, const Piece& piece) {
  if (piece.kind == ActionKind::BackwardWeight) return std::nullopt;
  const int neighbour = schedule.virtual_stage(rank, piece.chunk) + (moves_gradient(piece.kind) ? 1 : -1);
  if (neighbour < 0 || neighbour >= schedule.virtual_stages()) return std::nullopt;
  const auto from = schedule.place(neighbour);
  return output_message(schedule, from.rank, {piece.kind, from.chunk, piece.micro});
}

}  // namespace hearth
