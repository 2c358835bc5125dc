#include "parallel/hang_index.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace hearth {
namespace {

// Where both are the call of one number: whether ranks mean the same by it. A recv meets a send; texts of the
// control plane differ in length. An equivalence, so one call can stand for all that agree with it.
bool agree(const HangCall& a, const HangCall& b) {
  if (a.peer >= 0 && b.peer >= 0) return a.size_bytes == b.size_bytes;
  if ((a.peer >= 0) != (b.peer >= 0) || a.op != b.op || a.site != b.site) return false;
  return a.ranks.empty() || (a.size_bytes == b.size_bytes && a.dtype == b.dtype);
}

}  // namespace

bool WaitIndex::ByGroup::operator()(const HangCall* a, const HangCall* b) const {
  return std::tie(a->group, a->ranks) < std::tie(b->group, b->ranks);
}

WaitIndex::WaitIndex(const HangInput& input) : input_(input), waits_(input.states.size()) {
  for (size_t r = 0; r < input.states.size(); ++r) {
    if (!input.states[r]) continue;
    for (const HangCall& call : input.states[r]->entered)
      enter(static_cast<int>(r), group_of(call), call.seq);
  }
  std::map<std::tuple<int, uint64_t, int>, int> slots;
  std::map<std::pair<int, uint64_t>, const HangCall*> first;  // of each number
  for (size_t r = 0; r < input.states.size(); ++r) {
    if (!input.states[r]) continue;
    for (const HangCall& call : input.states[r]->waits) {
      const int group = group_of(call);
      enter(static_cast<int>(r), group, call.seq);
      const auto [at, is_new] = slots.try_emplace({group, call.seq, call.peer}, slot_calls_.size());
      if (is_new) {
        slot_calls_.push_back(&call);
        slot_groups_.push_back(group);
      }
      waits_[r].push_back({&call, group, at->second});
      different_calls_ =
          different_calls_ || !agree(*first.try_emplace({group, call.seq}, &call).first->second, call);
    }
  }
  for (size_t slot = 0; slot < slot_calls_.size(); ++slot)
    awaited_.push_back(find_awaited(groups_[static_cast<size_t>(slot_groups_[slot])], *slot_calls_[slot]));
}

int WaitIndex::group_of(const HangCall& call) {
  const auto [at, is_new] = group_ids_.try_emplace(&call, static_cast<int>(groups_.size()));
  if (!is_new) return at->second;
  Group& group = groups_.emplace_back();
  const int world = static_cast<int>(input_.states.size());
  if (call.ranks.empty()) {
    group.members.resize(input_.states.size());
    std::iota(group.members.begin(), group.members.end(), 0);
  } else {
    for (const int r : call.ranks)
      if (r >= 0 && r < world) group.members.push_back(r);
    std::sort(group.members.begin(), group.members.end());
    group.members.erase(std::unique(group.members.begin(), group.members.end()), group.members.end());
  }
  group.entered.resize(group.members.size());
  return at->second;
}

void WaitIndex::enter(int rank, int group, uint64_t seq) {
  auto& [members, entered] = groups_[static_cast<size_t>(group)];
  const auto at = std::lower_bound(members.begin(), members.end(), rank);
  if (at == members.end() || *at != rank) return;
  uint64_t& newest = entered[static_cast<size_t>(at - members.begin())];
  newest = std::max(newest, seq + 1);
}

std::vector<int> WaitIndex::find_awaited(const Group& group, const HangCall& call) const {
  std::vector<int> late, idle;
  for (size_t i = 0; i < group.members.size(); ++i) {
    const int r = group.members[i];
    if (call.peer >= 0 && r != call.peer) continue;
    const auto& state = input_.states[static_cast<size_t>(r)];
    if (!state || group.entered[i] <= call.seq)
      late.push_back(r);
    else if (state->waits.empty())
      idle.push_back(r);
  }
  return late.empty() ? idle : late;
}

const WaitIndex::Wait* WaitIndex::reason(int rank) const {
  const auto& all = waits(rank);
  const auto kept =
      std::find_if(all.begin(), all.end(), [&](const Wait& wait) { return !for_whom(wait).empty(); });
  if (kept != all.end()) return &*kept;
  return all.empty() ? nullptr : &all.front();
}

bool WaitIndex::has_entered(int rank, const Wait& wait) const {
  const Group& group = groups_[static_cast<size_t>(wait.group)];
  const auto at = std::lower_bound(group.members.begin(), group.members.end(), rank);
  return at != group.members.end() && *at == rank &&
         group.entered[static_cast<size_t>(at - group.members.begin())] > wait.call->seq;
}

}  // namespace hearth
