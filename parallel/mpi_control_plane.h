// The control plane over MPI. Rank 0 gathers and answers, with point-to-point messages, so that a rank that
// does not come is known by its number; cost is linear in the world size, which rare and small exchanges can
// afford.
#pragma once

#include <memory>

#include "parallel/control_plane.h"
#include "parallel/flight_recorder.h"
#include "parallel/mpi_session.h"

namespace hearth {

class MpiControlPlane final : public ControlPlane {
 public:
  // Of all ranks. Initialises MPI. `recorder` must outlive this object.
  MpiControlPlane(FlightRecorder& recorder, double timeout_s);
  // Of a part of `whole`, its ranks [first, first + count), this one among them. Collective over `whole`,
  // whose every rank names its part; `name` is for messages. Must not outlive `whole`.
  MpiControlPlane(MpiControlPlane& whole, std::string name, int first, int count);
  ~MpiControlPlane() override;

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  int job_rank(int rank) const override { return first_ + rank; }
  int local_rank() const override { return local_rank_; }
  int local_world_size() const override { return local_world_size_; }
  const std::string& host() const override { return host_; }
  std::vector<std::string> all_gather(std::string_view mine, std::string_view site) override;
  std::string broadcast(std::string_view from_root, std::string_view site, int root) override;
  void barrier(std::string_view site) override;
  void set_timeout(double timeout_s) override { timeout_s_ = timeout_s; }
  FailureMeeting meet_after_error(std::string_view message, double wait_s) override;
  [[noreturn]] void abort(int exit_code) override;

  MpiSession& session() { return session_; }
  MPI_Comm communicator() const { return comm_; }  // of these ranks, to split; not to send in

 private:
  class Call;  // one exchange: recorder entry and deadline
  void send(std::string_view text, int to, int tag, std::vector<MPI_Request>& requests);
  std::string receive(int from, int tag, Call& call);
  void finish(std::vector<MPI_Request>& requests, Call& call);
  std::vector<std::string> gather_at_root(std::string_view mine, int tag, Call& call);
  int next_tags();  // first of two tags, the same on all ranks

  FlightRecorder& recorder_;
  std::unique_ptr<MpiSession> own_session_;  // of the whole job; null in a part
  MpiSession& session_;
  std::string group_ = "world";
  int group_id_ = FlightRecorder::kAllRanks;
  double timeout_s_;
  MPI_Comm comm_ = MPI_COMM_NULL;  // of its own, so no message of a Comm can be mistaken for ours
  MPI_Comm ending_ =
      MPI_COMM_NULL;  // for meet_after_error only: never disturbed by an exchange that was given up
  int rank_ = 0, world_size_ = 1, local_rank_ = 0, local_world_size_ = 1;
  int first_ = 0;  // rank 0 as the whole job counts
  int tag_limit_ = 32767;
  uint64_t calls_ = 0;
  std::string host_;
};

}  // namespace hearth
