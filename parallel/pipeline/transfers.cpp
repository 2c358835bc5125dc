#include <algorithm>
#include <map>
#include <tuple>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

// Transfers of one rank, by the compute action that they stand next to.
struct Transfers {
  std::vector<std::vector<Action>> recvs_before, sends_after;  // [compute actions of the rank]
};

using Channels = std::map<std::pair<int, int>, std::vector<Message>>;  // (from, to) -> in order of sending
using RecvKey = std::tuple<ActionKind, int, int>;                      // kind, chunk, micro

Channels add_sends(const PipelineSchedule& schedule, std::vector<Transfers>& transfers) {
  Channels channels;
  for (int rank = 0; rank < schedule.stages; ++rank) {
    const auto& actions = schedule.ranks[static_cast<size_t>(rank)];
    auto& sends = transfers[static_cast<size_t>(rank)].sends_after;
    for (size_t i = 0; i < actions.size(); ++i)
      for (const Piece& piece : pieces(actions[i]))
        if (const auto message = output_message(schedule, rank, piece)) {
          sends[i].push_back(message->send);
          channels[{message->from, message->to}].push_back(*message);
        }
  }
  return channels;
}

// Which compute action of `rank` needs which recv.
std::map<RecvKey, size_t> needs_of(const PipelineSchedule& schedule, int rank) {
  std::map<RecvKey, size_t> needs;
  const auto& actions = schedule.ranks[static_cast<size_t>(rank)];
  for (size_t i = 0; i < actions.size(); ++i)
    for (const Piece& piece : pieces(actions[i]))
      if (const auto message = input_message(schedule, rank, piece))
        needs[{message->recv.kind, message->recv.chunk, message->recv.micro}] = i;
  return needs;
}

// Posts the recvs of one channel in its order, each one compute action ahead of its use or, where a later
// message of the channel is used sooner, ahead of that use.
void add_recvs(const std::vector<Message>& messages, const std::map<RecvKey, size_t>& needs,
               Transfers& transfers) {
  size_t latest = transfers.recvs_before.size();
  std::vector<size_t> positions(messages.size());
  for (size_t k = messages.size(); k-- > 0;) {
    const Action& recv = messages[k].recv;
    const size_t need = needs.at({recv.kind, recv.chunk, recv.micro});
    latest = std::min(latest, need == 0 ? 0 : need - 1);
    positions[k] = latest;
  }
  for (size_t k = 0; k < messages.size(); ++k)
    transfers.recvs_before[positions[k]].push_back(messages[k].recv);
}

}  // namespace

PipelineSchedule with_transfers(const PipelineSchedule& schedule) {
  std::vector<Transfers> transfers;
  for (const auto& actions : schedule.ranks) {
    HEARTH_REQUIRE(std::none_of(actions.begin(), actions.end(), is_transfer),
                   "with_transfers: the schedule has transfers already");
    transfers.push_back(
        {std::vector<std::vector<Action>>(actions.size()), std::vector<std::vector<Action>>(actions.size())});
  }
  const Channels channels = add_sends(schedule, transfers);
  std::vector<std::map<RecvKey, size_t>> needs;
  for (int rank = 0; rank < schedule.stages; ++rank) needs.push_back(needs_of(schedule, rank));
  for (const auto& [ends, messages] : channels) {
    const auto to = static_cast<size_t>(ends.second);
    add_recvs(messages, needs[to], transfers[to]);
  }

  PipelineSchedule out = schedule;
  for (size_t rank = 0; rank < out.ranks.size(); ++rank) {
    const std::vector<Action> compute = std::exchange(out.ranks[rank], {});
    auto& list = out.ranks[rank];
    for (size_t i = 0; i < compute.size(); ++i) {
      const auto& recvs = transfers[rank].recvs_before[i];
      const auto& sends = transfers[rank].sends_after[i];
      list.insert(list.end(), recvs.begin(), recvs.end());
      list.push_back(compute[i]);
      list.insert(list.end(), sends.begin(), sends.end());
    }
  }
  return out;
}

}  // namespace hearth
