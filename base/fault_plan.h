// Faults that a test orders by a line of text (HEARTH_FAULT; launch reads the environment and passes it in):
//   kill@rank=1,step=17; sleep@point=data.next,ms=20; throw@rank=0,point=ckpt.voted,count=2
// Actions: kill (SIGKILL), stop (SIGSTOP), term (SIGTERM), exit (code=N, default 1), throw (Error{Internal}),
// sleep (ms=N, default 1000) are carried out by hit(); nan, flip and skip_collective are returned to the
// caller, who knows what to poison. Conditions that are not given match everything; count = which match fires
// (default the first), every=1: each match from the count-th on. Points: init, data.next, fwd,
// allreduce.before, allreduce.inside, step.end, ckpt.begin, ckpt.shard_written, ckpt.shard_synced,
// ckpt.voted, ckpt.manifest, ckpt.renamed, ckpt.parent_synced, ckpt.pruning, async.copy, finalize;
// those of `hearth watch`: launch/watch/watch_loop.h.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

enum class FaultAction { Kill, Stop, Term, Exit, Throw, Sleep, Nan, Flip, SkipCollective };

struct FaultRule {
  FaultAction action = FaultAction::Kill;
  std::optional<int64_t> rank, step;
  std::string point;  // empty: any
  int64_t count = 1;
  int64_t every = 0;  // 1: fires at each match from the count-th on
  int64_t ms = 1000;  // sleep
  int64_t code = 1;   // exit
  bool operator==(const FaultRule&) const = default;
};

// Parses the plan; "" is no fault. Throws Error{Usage} that names the bad word and the choices.
std::vector<FaultRule> parse_fault_plan(std::string_view text);

// One per process. Thread-safe: the save worker passes its points too. Does nothing when the plan is empty.
class FaultInjector {
 public:
  FaultInjector() = default;
  FaultInjector(std::vector<FaultRule> plan, int rank)
      : plan_(std::move(plan)), matches_(plan_.size()), rank_(rank) {}

  bool armed() const { return !plan_.empty(); }
  void set_step(int64_t step);
  // Carries out what the plan orders here. Returns an action that only the caller can carry out, if one
  // fires.
  std::optional<FaultAction> hit(std::string_view point);

 private:
  std::mutex mutex_;
  std::vector<FaultRule> plan_;
  std::vector<int64_t> matches_;
  int rank_ = 0;
  int64_t step_ = 0;
};

}  // namespace hearth
