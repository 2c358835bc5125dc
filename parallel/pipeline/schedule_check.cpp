#include <map>
#include <optional>
#include <string>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

// Replays the lists of all ranks, one action at a time, without a clock.
class ScheduleCheck {
 public:
  explicit ScheduleCheck(const PipelineSchedule& schedule) : schedule_(schedule) {}

  void run() {
    check_shape();
    const auto states =
        static_cast<size_t>(schedule_.virtual_stages()) * static_cast<size_t>(schedule_.micros);
    states_.assign(states, State::None);
    posts_.assign(2 * states, {});
    positions_.assign(schedule_.ranks.size(), 0);
    replay();
    check_complete();
    check_channels_empty();
    check_serial();
  }

 private:
  enum class State { None, Forwarded, InputDone, Done };
  struct Channel {
    std::vector<Action> sends, recvs;  // both as the receiver names them
  };
  struct Posts {
    std::optional<size_t> send, recv;  // of one transfer: where in its channel either end has posted it
  };

  template <class... Args>
  [[noreturn]] void broken(int rank, fmt::format_string<Args...> format, Args&&... args) const {
    const auto& list = schedule_.ranks[static_cast<size_t>(rank)];
    const size_t at = positions_.empty() ? list.size() : positions_[static_cast<size_t>(rank)];
    fail(ErrorKind::Internal, "pipeline schedule {} (stages {}, chunks {}, micros {}): rank {}{}: {}",
         config_name(schedule_.kind), schedule_.stages, schedule_.chunks, schedule_.micros, rank,
         at < list.size() ? fmt::format(", action {} ({})", at, describe(list[at])) : std::string(),
         fmt::format(format, std::forward<Args>(args)...));
  }

  void check_shape() {
    HEARTH_CHECK(schedule_.stages >= 1 && schedule_.chunks >= 1 && schedule_.micros >= 1, Internal,
                 "pipeline schedule {}: counts must be >= 1", config_name(schedule_.kind));
    HEARTH_CHECK(schedule_.ranks.size() == static_cast<size_t>(schedule_.stages), Internal,
                 "pipeline schedule {}: {} lists for {} stages", config_name(schedule_.kind),
                 schedule_.ranks.size(), schedule_.stages);
    positions_.assign(schedule_.ranks.size(), 0);
    for (int rank = 0; rank < schedule_.stages; ++rank) {
      auto& at = positions_[static_cast<size_t>(rank)];
      for (const auto& list = schedule_.ranks[static_cast<size_t>(rank)]; at < list.size(); ++at)
        check_action(rank, list[at]);
    }
  }

  void check_action(int rank, const Action& action) {
    const auto in_range = [&](int chunk, int micro) {
      return chunk >= 0 && chunk < schedule_.chunks && micro >= 0 && micro < schedule_.micros;
    };
    if (!in_range(action.chunk, action.micro)) broken(rank, "there is no such chunk or micro");
    if (is_transfer(action)) has_transfers_ = true;
    if (action.kind == ActionKind::ForwardBackward) {
      if (!in_range(action.backward_chunk, action.backward_micro))
        broken(rank, "there is no such chunk or micro for the backward half");
    } else if (action.backward_chunk != -1 || action.backward_micro != -1) {
      broken(rank, "only ForwardBackward has a second pair");
    }
  }

  // Runs each rank as far as it can go until none moves; a rank that stands then stands forever.
  void replay() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule_.stages; ++rank)
        while (step(rank)) moved = true;
    }
    for (int rank = 0; rank < schedule_.stages; ++rank)
      if (positions_[static_cast<size_t>(rank)] < schedule_.ranks[static_cast<size_t>(rank)].size())
        broken(rank, "never gets what it waits for: the lists deadlock");
  }

  bool step(int rank) {
    const auto& list = schedule_.ranks[static_cast<size_t>(rank)];
    size_t& at = positions_[static_cast<size_t>(rank)];
    if (at == list.size()) return false;
    if (is_transfer(list[at])) {
      post(rank, list[at]);
    } else {
      const Pieces parts = pieces(list[at]);
      for (const Piece& piece : parts)
        if (!ready(rank, piece)) return false;
      // Both pieces of a ForwardBackward are ready before either counts as done: neither may need the other.
      for (const Piece& piece : parts) finish(rank, piece);
    }
    ++at;
    return true;
  }

  State& state(int virtual_stage, int micro) {
    return states_[static_cast<size_t>(virtual_stage) * static_cast<size_t>(schedule_.micros) +
                   static_cast<size_t>(micro)];
  }

  // Whether what the piece needs from other virtual stages has come. What it needs from its own must be
  // there, for it is earlier in the same list.
  bool ready(int rank, const Piece& piece) {
    const int stage = schedule_.virtual_stage(rank, piece.chunk);
    const State own = state(stage, piece.micro);
    if (piece.kind == ActionKind::BackwardWeight) {
      if (own != State::InputDone) broken(rank, "BackwardWeight does not follow its BackwardInput");
      return true;
    }
    const bool gradient = moves_gradient(piece.kind);
    if (!gradient && own != State::None) broken(rank, "a second Forward of the same chunk and micro");
    if (gradient && own == State::None) broken(rank, "a backward before its Forward");
    if (gradient && own != State::Forwarded) broken(rank, "a second backward of the same chunk and micro");
    const int neighbour = stage + (gradient ? 1 : -1);
    if (neighbour < 0 || neighbour >= schedule_.virtual_stages()) return true;
    const auto message = input_message(schedule_, rank, piece);
    if (message && has_transfers_) return arrived(rank, *message);
    return state(neighbour, piece.micro) >= (gradient ? State::InputDone : State::Forwarded);
  }

  void finish(int rank, const Piece& piece) {
    State& own = state(schedule_.virtual_stage(rank, piece.chunk), piece.micro);
    if (piece.kind == ActionKind::Forward) own = State::Forwarded;
    if (piece.kind == ActionKind::BackwardInput) own = State::InputDone;
    if (piece.kind == ActionKind::Backward || piece.kind == ActionKind::BackwardWeight) own = State::Done;
  }

  Posts& posts(const Message& message) {
    const int stage = schedule_.virtual_stage(message.to, message.recv.chunk);
    const size_t pair = static_cast<size_t>(stage) * static_cast<size_t>(schedule_.micros) +
                        static_cast<size_t>(message.recv.micro);
    return posts_[2 * pair + (message.recv.kind == ActionKind::RecvBackward ? 1 : 0)];
  }

  bool arrived(int rank, const Message& message) {
    const std::optional<size_t> recv = posts(message).recv;
    if (!recv)
      broken(rank, "needs {} from rank {}, which is not posted before it", describe(message.recv),
             message.from);
    return *recv < channels_[{message.from, message.to}].sends.size();
  }

  void post(int rank, const Action& action) {
    const bool sends = action.kind == ActionKind::SendForward || action.kind == ActionKind::SendBackward;
    const bool gradient = action.kind == ActionKind::SendBackward || action.kind == ActionKind::RecvBackward;
    const Message message = message_of(rank, action);
    const State own = state(schedule_.virtual_stage(rank, action.chunk), action.micro);
    if (sends && own < (gradient ? State::InputDone : State::Forwarded))
      broken(rank, "sends what it has not computed");
    if (!sends && own >= (gradient ? State::InputDone : State::Forwarded))
      broken(rank, "posts a recv after its use");
    Channel& channel = channels_[{message.from, message.to}];
    auto& posted = sends ? channel.sends : channel.recvs;
    const auto& other = sends ? channel.recvs : channel.sends;
    std::optional<size_t>& place = sends ? posts(message).send : posts(message).recv;
    if (place) broken(rank, "a second post of the same transfer");
    place = posted.size();
    posted.push_back(message.recv);
    if (posted.size() <= other.size() && !(other[posted.size() - 1] == message.recv))
      broken(rank, "channel {} -> {}: post {} is {} at the other end", message.from, message.to,
             posted.size() - 1, describe(other[posted.size() - 1]));
  }

  void check_complete() {
    for (int stage = 0; stage < schedule_.virtual_stages(); ++stage)
      for (int micro = 0; micro < schedule_.micros; ++micro)
        if (state(stage, micro) != State::Done)
          broken(schedule_.place(stage).rank, "virtual stage {}, micro {}: {} is missing", stage, micro,
                 state(stage, micro) == State::None        ? "Forward"
                 : state(stage, micro) == State::Forwarded ? "Backward"
                                                           : "BackwardWeight");
  }

  void check_channels_empty() {
    for (const auto& [ends, channel] : channels_)
      if (channel.sends.size() != channel.recvs.size())
        broken(ends.second, "channel {} -> {}: {} sends, {} recvs", ends.first, ends.second,
               channel.sends.size(), channel.recvs.size());
  }

  // Nothing overlaps and a transfer takes both ends at once.
  void check_serial() {
    positions_.assign(schedule_.ranks.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule_.stages; ++rank)
        while (serial_step(rank)) moved = true;
    }
    for (int rank = 0; rank < schedule_.stages; ++rank)
      if (head(rank) != nullptr)
        broken(rank, "would wait forever where transfers hold up what comes after them");
  }

  const Action* head(int rank) const {
    const auto& list = schedule_.ranks[static_cast<size_t>(rank)];
    const size_t at = positions_[static_cast<size_t>(rank)];
    return at < list.size() ? &list[at] : nullptr;
  }

  bool serial_step(int rank) {
    const Action* action = head(rank);
    if (action == nullptr) return false;
    if (is_transfer(*action)) {
      const Message message = message_of(rank, *action);
      const bool sends = message.from == rank;
      const int peer = sends ? message.to : message.from;
      const Action* other = head(peer);
      if (other == nullptr || !(*other == (sends ? message.recv : message.send))) return false;
      ++positions_[static_cast<size_t>(peer)];
    }
    ++positions_[static_cast<size_t>(rank)];
    return true;
  }

  Message message_of(int rank, const Action& transfer) const {
    const bool sends = transfer.kind == ActionKind::SendForward || transfer.kind == ActionKind::SendBackward;
    const bool gradient =
        transfer.kind == ActionKind::SendBackward || transfer.kind == ActionKind::RecvBackward;
    const Piece piece{gradient ? ActionKind::Backward : ActionKind::Forward, transfer.chunk, transfer.micro};
    const auto message =
        sends ? output_message(schedule_, rank, piece) : input_message(schedule_, rank, piece);
    if (!message) broken(rank, "there is no other rank for this transfer");
    return *message;
  }

  const PipelineSchedule& schedule_;
  bool has_transfers_ = false;
  std::vector<State> states_;  // [virtual stages][micros]
  std::vector<Posts> posts_;   // [virtual stages of the receiver][micros][activation, gradient]
  std::vector<size_t> positions_;
  std::map<std::pair<int, int>, Channel> channels_;  // (from, to)
};

}  // namespace

void check_schedule(const PipelineSchedule& schedule) {
  ScheduleCheck(schedule).run();
}

}  // namespace hearth
