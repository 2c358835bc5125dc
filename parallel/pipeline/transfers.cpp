#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

struct Span {
  int start = 0, end = 0;
};

int duration(const Pieces& parts) {
  int units = 0;
  for (const Piece& piece : parts) units += piece.kind == ActionKind::Backward ? 2 : 1;
  return units;
}

// When each compute action would run if forward, input gradient and weight gradient took one unit each and
// transfers none: [ranks][compute actions].
class UnitTimes {
 public:
  explicit UnitTimes(const PipelineSchedule& schedule) : schedule_(schedule), spans_(schedule.ranks.size()) {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < schedule.stages; ++rank)
        while (step(rank)) moved = true;
    }
    for (size_t rank = 0; rank < spans_.size(); ++rank)
      HEARTH_REQUIRE(spans_[rank].size() == schedule.ranks[rank].size(),
                     "with_transfers: rank {} never gets what action {} waits for", rank,
                     spans_[rank].size());
  }
  const Span& operator()(int rank, size_t action) const { return spans_[static_cast<size_t>(rank)][action]; }

  // Index of the first action of `rank` that starts later than `time`; their number where none does. A rank's
  // starts rise, as every action takes time.
  size_t first_after(int rank, int time) const {
    const auto& spans = spans_[static_cast<size_t>(rank)];
    const auto later = std::upper_bound(spans.begin(), spans.end(), time,
                                        [](int t, const Span& span) { return t < span.start; });
    return static_cast<size_t>(later - spans.begin());
  }

 private:
  using SendKey = std::tuple<int, ActionKind, int, int>;  // sending rank, kind, chunk, micro

  bool step(int rank) {
    auto& spans = spans_[static_cast<size_t>(rank)];
    const auto& list = schedule_.ranks[static_cast<size_t>(rank)];
    if (spans.size() == list.size()) return false;
    const Pieces parts = pieces(list[spans.size()]);
    int start = spans.empty() ? 0 : spans.back().end;
    for (const Piece& piece : parts)
      if (const auto message = input_message(schedule_, rank, piece)) {
        const auto sent =
            sent_.find({message->from, message->send.kind, message->send.chunk, message->send.micro});
        if (sent == sent_.end()) return false;
        start = std::max(start, sent->second);
      }
    spans.push_back({start, start + duration(parts)});
    for (const Piece& piece : parts)
      if (const auto message = output_message(schedule_, rank, piece))
        sent_[{rank, message->send.kind, message->send.chunk, message->send.micro}] = spans.back().end;
    return true;
  }

  const PipelineSchedule& schedule_;
  std::vector<std::vector<Span>> spans_;
  std::map<SendKey, int> sent_;
};

// All transfers of all ranks in one order, which both ends follow: by the start of the action that sends.
struct Transfer {
  int start;  // of the sending action
  Message message;
  size_t producer;  // index of the sending action in its list
};

std::vector<Transfer> ordered_transfers(const PipelineSchedule& schedule, const UnitTimes& times) {
  std::vector<Transfer> transfers;
  for (int rank = 0; rank < schedule.stages; ++rank) {
    const auto& list = schedule.ranks[static_cast<size_t>(rank)];
    for (size_t i = 0; i < list.size(); ++i)
      for (const Piece& piece : pieces(list[i]))
        if (const auto message = output_message(schedule, rank, piece))
          transfers.push_back({times(rank, i).start, *message, i});
  }
  // Stable: what one action sends stays in the order of its pieces, on both sides.
  std::stable_sort(transfers.begin(), transfers.end(), [](const Transfer& a, const Transfer& b) {
    return std::tuple(a.start, a.message.from) < std::tuple(b.start, b.message.from);
  });
  return transfers;
}

}  // namespace

PipelineSchedule with_transfers(const PipelineSchedule& schedule) {
  for (const auto& actions : schedule.ranks)
    HEARTH_REQUIRE(std::none_of(actions.begin(), actions.end(), is_transfer),
                   "with_transfers: the schedule has transfers already");
  const UnitTimes times(schedule);
  // [ranks][gaps]: what stands before each compute action, and after the last.
  std::vector<std::vector<std::vector<Action>>> gaps;
  for (const auto& actions : schedule.ranks) gaps.emplace_back(actions.size() + 1);
  for (const Transfer& transfer : ordered_transfers(schedule, times)) {
    const auto [from, to, send, recv] = transfer.message;
    gaps[static_cast<size_t>(from)][transfer.producer + 1].push_back(send);
    gaps[static_cast<size_t>(to)][times.first_after(to, transfer.start)].push_back(recv);
  }
  PipelineSchedule out = schedule;
  for (size_t rank = 0; rank < out.ranks.size(); ++rank) {
    const std::vector<Action> compute = std::exchange(out.ranks[rank], {});
    auto& list = out.ranks[rank];
    for (size_t i = 0; i <= compute.size(); ++i) {
      list.insert(list.end(), gaps[rank][i].begin(), gaps[rank][i].end());
      if (i < compute.size()) list.push_back(compute[i]);
    }
  }
  return out;
}

}  // namespace hearth
