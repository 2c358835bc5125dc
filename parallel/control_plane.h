// The control plane: small, rare, host-side exchanges between all ranks of the job, or of a part of it
// (start-up checks, votes, the commit of a checkpoint). Never used per step for bulk data; that is Comm's
// work (parallel/comm.h). Every call is collective, has a deadline and a call-site name; a deadline passed is
// Error{Timeout}. Backends: MPI (mpirun, srun --mpi=pmix) and a single rank. Not thread-safe: main thread
// only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

// What the ranks found when each brought its error to meet_after_error.
struct FailureMeeting {
  bool all_failed;  // every rank came: the job may end normally, with a non-zero code and no MPI_Abort
  bool speak;       // this rank is the lowest one with its message, so the message is printed once
};

class ControlPlane {
 public:
  virtual ~ControlPlane() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // What people and the flight recorder call `rank`: its number in the whole job, where this is a part of
  // one.
  virtual int job_rank(int rank) const { return rank; }
  virtual int local_rank() const = 0;  // index among the ranks of this host, other parts of the job included
  virtual int local_world_size() const = 0;
  virtual const std::string& host() const = 0;

  // Everybody gets everybody's text, in rank order.
  virtual std::vector<std::string> all_gather(std::string_view mine, std::string_view site) = 0;
  // Everybody gets root's text.
  virtual std::string broadcast(std::string_view from_root, std::string_view site, int root = 0) = 0;
  virtual void barrier(std::string_view site) = 0;
  // Deadline of the calls above, seconds; JobOptions::timeout_s until set. The same on all ranks.
  virtual void set_timeout(double timeout_s) = 0;

  // For a rank that is about to end because of `message`: waits at most `wait_s` for all others to come here
  // too.
  virtual FailureMeeting meet_after_error(std::string_view message, double wait_s) = 0;
  // Ends all ranks of the job at once with `exit_code`; does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;

  // Built on all_gather. True when every rank says yes; `reasons` (if given) collects "rank R: text" of the
  // others.
  bool vote(bool mine, std::string_view reason, std::string_view site,
            std::vector<std::string>* reasons = nullptr);
  // Throws Error{kind} on every rank, naming the odd ranks, unless all ranks pass the same text.
  void require_same(std::string_view what, std::string_view mine, std::string_view site);
  int64_t all_reduce_max(int64_t mine, std::string_view site);
  int64_t all_reduce_sum(int64_t mine, std::string_view site);

  std::vector<int> all_ranks() const;  // 0, 1, ...
};

std::unique_ptr<ControlPlane> make_single_control_plane();

}  // namespace hearth
