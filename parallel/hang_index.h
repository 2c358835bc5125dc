// Who waits for whom, from what all ranks have written. Every wait is put under its (group, call, peer) once,
// so that the cost grows with the number of waits and not with its square: over NCCL 512 ranks may each wait
// in 64 calls of 512 members. For hang_report.cpp alone; refers to the input, which must outlive it.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "parallel/hang_report.h"

namespace hearth {

class WaitIndex {
 public:
  struct Wait {
    const HangCall* call;
    int group;  // of the index
    int slot;   // of waits of this (group, call, peer)
  };
  explicit WaitIndex(const HangInput& input);

  const std::vector<Wait>& waits(int rank) const { return waits_[static_cast<size_t>(rank)]; }
  // For whom a rank waits in the call, ascending: those that have not entered it (without an answer: nobody
  // knows), else those that have, but wait in nothing: MPI moves data only inside calls.
  const std::vector<int>& for_whom(const Wait& wait) const {
    return awaited_[static_cast<size_t>(wait.slot)];
  }
  const std::vector<std::vector<int>>& all_awaited() const { return awaited_; }
  // The call that explains why the rank waits: the oldest one that somebody keeps, else the oldest; null
  // where it waits in none.
  const Wait* reason(int rank) const;
  bool has_entered(int rank, const Wait& wait) const;
  // Whether ranks mean different calls by one number of one group.
  bool different_calls() const { return different_calls_; }

 private:
  struct Group {
    std::vector<int> members;       // ascending
    std::vector<uint64_t> entered;  // by member: number of its newest call + 1; 0: none
  };
  struct ByGroup {  // orders calls by their group, without copies of 512 ranks
    bool operator()(const HangCall* a, const HangCall* b) const;
  };
  int group_of(const HangCall& call);
  void enter(int rank, int group, uint64_t seq);
  std::vector<int> find_awaited(const Group& group, const HangCall& call) const;

  const HangInput& input_;
  std::map<const HangCall*, int, ByGroup> group_ids_;
  std::vector<Group> groups_;
  std::vector<std::vector<Wait>> waits_;     // by rank
  std::vector<const HangCall*> slot_calls_;  // the first call of each slot
  std::vector<int> slot_groups_;
  std::vector<std::vector<int>> awaited_;  // by slot
  bool different_calls_ = false;
};

}  // namespace hearth
