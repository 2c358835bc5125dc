#include "parallel/pipeline/simulator.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

void check_costs(const PipelineSchedule& schedule, const ScheduleCosts& costs) {
  const auto stages = static_cast<size_t>(schedule.virtual_stages());
  HEARTH_REQUIRE(costs.times.size() == stages, "simulate: {} stage times for {} virtual stages",
                 costs.times.size(), stages);
  HEARTH_REQUIRE(costs.activations.empty() || costs.activations.size() == stages,
                 "simulate: {} activation sizes for {} virtual stages", costs.activations.size(), stages);
  const auto is_time = [](double seconds) { return std::isfinite(seconds) && seconds >= 0; };
  for (const StageTimes& t : costs.times)
    HEARTH_REQUIRE(is_time(t.forward) && is_time(t.backward_input) && is_time(t.backward_weight),
                   "simulate: times must be finite and >= 0, got {}, {}, {}", t.forward, t.backward_input,
                   t.backward_weight);
  HEARTH_REQUIRE(is_time(costs.transfer) && costs.overlap >= 0 && costs.overlap <= 1,
                 "simulate: transfer must be >= 0 and overlap in [0, 1], got {} and {}", costs.transfer,
                 costs.overlap);
}

bool is_send(ActionKind kind) {
  return kind == ActionKind::SendForward || kind == ActionKind::SendBackward;
}

// Each rank runs its list as far as the others let it; a rank's clock is the end of its last compute action.
// The order in which ranks are visited has no influence: a channel's order is fixed by the lists.
class Replay {
 public:
  Replay(const PipelineSchedule& schedule, const ScheduleCosts& costs)
      : schedule_(schedule),
        costs_(costs),
        positions_(schedule.ranks.size()),
        clocks_(schedule.ranks.size()) {
    result_.ranks.resize(schedule.ranks.size());
  }

  Simulation run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule_.stages; ++rank)
        while (step(rank)) moved = true;
    }
    for (const double clock : clocks_) result_.total = std::max(result_.total, clock);
    for (size_t rank = 0; rank < clocks_.size(); ++rank) {
      SimulatedRank& r = result_.ranks[rank];
      r.idle = result_.total - r.busy;
      if (!r.actions.empty()) r.idle_inside = r.actions.back().end - r.actions.front().start - r.busy;
    }
    return std::move(result_);
  }

 private:
  struct Channel {
    std::vector<double> sends, recvs;  // when each was posted
    std::vector<double> ends;          // when each transfer that both ends have posted is through
  };
  using TransferKey = std::tuple<int, ActionKind, int, int>;  // receiving rank, kind, chunk, micro

  const StageTimes& times(int rank, int chunk) const {
    return costs_.times[static_cast<size_t>(schedule_.virtual_stage(rank, chunk))];
  }

  double seconds(int rank, const Piece& piece) const {
    const StageTimes& t = times(rank, piece.chunk);
    switch (piece.kind) {
      case ActionKind::Forward:
        return t.forward;
      case ActionKind::Backward:
        return t.backward_input + t.backward_weight;
      case ActionKind::BackwardInput:
        return t.backward_input;
      case ActionKind::BackwardWeight:
        return t.backward_weight;
      default:
        fail(ErrorKind::Internal, "simulate: {} has no cost of its own", name(piece.kind));
    }
  }

  double seconds(int rank, const Pieces& parts) const {
    const double first = seconds(rank, parts.items[0]);
    if (parts.count == 1) return first;
    const double second = seconds(rank, parts.items[1]);
    return std::max(first, second) + (1 - costs_.overlap) * std::min(first, second);
  }

  bool step(int rank) {
    const auto at = static_cast<size_t>(rank);
    const auto& list = schedule_.ranks[at];
    if (positions_[at] == list.size()) return false;
    const Action& action = list[positions_[at]];
    if (is_transfer(action)) {
      post(rank, action);
    } else if (!compute(rank, action)) {
      return false;
    }
    ++positions_[at];
    return true;
  }

  void post(int rank, const Action& action) {
    const bool gradient = action.kind == ActionKind::SendBackward || action.kind == ActionKind::RecvBackward;
    const Piece piece{gradient ? ActionKind::Backward : ActionKind::Forward, action.chunk, action.micro};
    const bool send = is_send(action.kind);
    const auto message =
        send ? output_message(schedule_, rank, piece) : input_message(schedule_, rank, piece);
    Channel& channel = channels_[{message->from, message->to}];
    if (!send) indices_[{rank, action.kind, action.chunk, action.micro}] = channel.recvs.size();
    (send ? channel.sends : channel.recvs).push_back(clocks_[static_cast<size_t>(rank)]);
    while (channel.ends.size() < std::min(channel.sends.size(), channel.recvs.size())) {
      const size_t k = channel.ends.size();
      const double free = k == 0 ? 0 : channel.ends.back();
      channel.ends.push_back(std::max({free, channel.sends[k], channel.recvs[k]}) + costs_.transfer);
    }
  }

  bool compute(int rank, const Action& action) {
    const auto at = static_cast<size_t>(rank);
    const Pieces parts = pieces(action);
    double start = clocks_[at];
    for (const Piece& piece : parts) {
      const auto message = input_message(schedule_, rank, piece);
      if (!message) continue;  // earlier in this very list
      const Channel& channel = channels_[{message->from, message->to}];
      const size_t k = indices_.at({rank, message->recv.kind, message->recv.chunk, message->recv.micro});
      if (k >= channel.ends.size()) return false;
      start = std::max(start, channel.ends[k]);
    }
    const double duration = seconds(rank, parts);
    clocks_[at] = start + duration;
    result_.ranks[at].actions.push_back({action, start, clocks_[at]});
    result_.ranks[at].busy += duration;
    account(rank, parts);
    return true;
  }

  // Memory of one compute action: a Forward takes what it leaves at its start, a backward frees at its end.
  void account(int rank, const Pieces& parts) {
    SimulatedRank& r = result_.ranks[static_cast<size_t>(rank)];
    Held& held = held_[rank];
    const auto bytes = [&](const Piece& piece) {
      return costs_.activations.empty()
                 ? ActivationBytes{}
                 : costs_.activations[static_cast<size_t>(schedule_.virtual_stage(rank, piece.chunk))];
    };
    for (const Piece& piece : parts)
      if (piece.kind == ActionKind::Forward) {
        held.count += 1;
        held.bytes += bytes(piece).forward;
      }
    r.peak_activations = std::max(r.peak_activations, held.count);
    r.peak_bytes = std::max(r.peak_bytes, held.bytes);
    for (const Piece& piece : parts) {
      if (moves_gradient(piece.kind)) held.bytes -= bytes(piece).forward;
      if (piece.kind == ActionKind::BackwardInput) held.bytes += bytes(piece).weight;
      if (piece.kind == ActionKind::BackwardWeight) held.bytes -= bytes(piece).weight;
      if (piece.kind == ActionKind::Backward || piece.kind == ActionKind::BackwardWeight) held.count -= 1;
    }
    r.peak_bytes = std::max(r.peak_bytes, held.bytes);
  }

  struct Held {
    int count = 0;
    int64_t bytes = 0;
  };

  const PipelineSchedule& schedule_;
  const ScheduleCosts& costs_;
  std::vector<size_t> positions_;
  std::vector<double> clocks_;                       // [ranks] end of the last compute action
  std::map<std::pair<int, int>, Channel> channels_;  // (from, to)
  std::map<TransferKey, size_t> indices_;            // which transfer of its channel a recv is
  std::map<int, Held> held_;                         // [rank]
  Simulation result_;
};

}  // namespace

ScheduleCosts uniform_costs(const PipelineSchedule& schedule, const StageTimes& times) {
  return {.times = std::vector<StageTimes>(static_cast<size_t>(schedule.virtual_stages()), times),
          .activations = {}};
}

double Simulation::bubble() const {
  double largest = 0;
  for (const SimulatedRank& rank : ranks) largest = std::max(largest, rank.idle);
  return largest;
}

double Simulation::bubble_fraction() const {
  double idle = 0;
  for (const SimulatedRank& rank : ranks) idle += rank.idle;
  return total > 0 ? idle / (total * static_cast<double>(ranks.size())) : 0;
}

Simulation simulate(const PipelineSchedule& schedule, const ScheduleCosts& costs) {
  check_costs(schedule, costs);
  const bool bare = std::all_of(schedule.ranks.begin(), schedule.ranks.end(), [](const auto& list) {
    return std::none_of(list.begin(), list.end(), is_transfer);
  });
  const PipelineSchedule full = bare ? with_transfers(schedule) : schedule;
  check_schedule(full);
  return Replay(full, costs).run();
}

}  // namespace hearth
