// Comm over MPI for host memory: deterministic (sums in rank order), asynchronous (several calls in flight),
// with a deadline in every wait. How: every collective is cut into segments of point-to-point messages; a
// state machine per segment, driven by MpiSession::progress, posts, sums and forwards. An all-reduce is a
// reduce-scatter by direct exchange (every rank sends each other rank its piece; the owner adds the pieces in
// rank order) followed by an all-gather: the classic bandwidth-optimal pair (Thakur, Rabenseifner & Gropp
// 2005, section 4.5) without its reduction tree, whose order depends on the algorithm. Small all-reduces are
// one exchange of whole vectors, summed by everybody alike. Memory: reductions receive into scratch that is
// reused, at most kReduceWindow segments at a time; nothing else copies.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm.h"
#include "parallel/flight_recorder.h"
#include "parallel/mpi_session.h"

namespace hearth {

class MpiComm final : public Comm, private MpiSession::Client {
 public:
  struct Options {
    std::string group;
    std::vector<int> ranks;            // ranks of MPI_COMM_WORLD in group order; this rank is among them
    MPI_Comm parent = MPI_COMM_WORLD;  // that all of them are in
    double timeout_s = 300;
  };
  // Collective over the parent: every rank passes the group it is in, or an empty `ranks` when in none
  // (then the object must not be used). `session` and `recorder` must outlive it.
  MpiComm(MpiSession& session, FlightRecorder& recorder, Options options);
  ~MpiComm() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string_view backend() const override { return "mpi"; }
  const std::string& group() const override { return options_.group; }
  void set_compute_stream(StreamHandle) override {}  // host memory: no stream

  WorkPtr all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view site) override;
  WorkPtr reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                         std::string_view site) override;
  WorkPtr all_gather(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override;
  WorkPtr broadcast(void* data, int64_t count, DType dtype, int root, std::string_view site) override;
  WorkPtr all_to_all(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override;
  WorkPtr send(const void* data, int64_t count, DType dtype, int peer, std::string_view site) override;
  WorkPtr recv(void* data, int64_t count, DType dtype, int peer, std::string_view site) override;
  void barrier(std::string_view site) override;

 private:
  struct Call;     // one collective
  struct Segment;  // one part of it, with its requests
  class CallWork;

  WorkPtr start(Call fields);
  void progress() override;
  void check_completed(const Segment& segment, int code);
  void check_lengths(const Segment& segment);
  [[noreturn]] void report_different_calls(const Segment& segment, const std::string& what);
  void check_peer(std::string_view op, int peer, std::string_view site) const;
  void advance(Segment& segment);  // its requests are complete: sum, go to the next stage or finish
  void post(Segment& segment);
  void post_reduce(Segment& segment);
  void post_gather(Segment& segment);
  void post_copies(Segment& segment);
  void sum(Segment& segment);
  void exchange(Segment& segment, int peer, const std::byte* out, int64_t out_bytes, std::byte* in,
                int64_t in_bytes);
  void wait(Call& call);
  [[noreturn]] void give_up(Call& call);
  std::string missing_ranks(Call& call);
  void abandon(Call& call);
  int collective_tag(int64_t count);
  int peer_tag(std::vector<uint64_t>& counters, int peer);

  MpiSession& session_;
  FlightRecorder& recorder_;
  Options options_;
  MPI_Comm collective_comm_ = MPI_COMM_NULL, peer_comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  int tag_limit_ = 32767;
  int group_id_ = 0;  // of the flight recorder
  uint64_t seq_ = 0, next_tag_ = 0;
  std::vector<uint64_t> sends_to_, recvs_from_;  // per peer, for tags
  std::deque<std::unique_ptr<Segment>>
      waiting_;  // reduction segments that have no scratch yet, in call order
  std::vector<std::unique_ptr<Segment>> active_;
  std::vector<std::vector<std::byte>> scratch_;  // free buffers
  int reductions_active_ = 0;
  std::vector<MPI_Status> statuses_;  // of the segment just tested
};

}  // namespace hearth
