#include "parallel/mpi_comm.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <exception>

#include "base/error.h"
#include "parallel/reduce.h"

namespace hearth {
namespace {

// One segment of a reduction: large enough that message overhead vanishes, small enough that the pieces of a
// few ranks are still in the shared cache when they are added.
constexpr int64_t kSegmentBytes = 512 << 10;
// Segments of reductions that may hold scratch at once: one is added while the others travel.
constexpr int kReduceWindow = 4;
// Below this many bytes an all-reduce sends whole vectors: one message latency instead of two.
constexpr int64_t kDirectBytes = 8 << 10;
// MPI counts are int.
constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;

enum class Kind { AllReduce, AllReduceDirect, ReduceScatter, AllGather, AllToAll, Broadcast, Send, Recv };

std::string_view op_name(Kind kind) {
  switch (kind) {
    case Kind::AllReduce:
    case Kind::AllReduceDirect:
      return "all_reduce";
    case Kind::ReduceScatter:
      return "reduce_scatter";
    case Kind::AllGather:
      return "all_gather";
    case Kind::AllToAll:
      return "all_to_all";
    case Kind::Broadcast:
      return "broadcast";
    case Kind::Send:
      return "send";
    default:
      return "recv";
  }
}

bool is_reduction(Kind kind) {
  return kind == Kind::AllReduce || kind == Kind::AllReduceDirect || kind == Kind::ReduceScatter;
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

struct MpiComm::Call {
  Kind kind;
  ReduceOp op = ReduceOp::Sum;
  DType dtype;
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  int64_t count = 0;  // as the caller gave it
  int peer = -1;      // root, or the other end
  std::string site;

  int64_t chunk = 0;          // elements that one rank owns
  int64_t segment_count = 0;  // elements of a chunk in one segment
  int64_t segments = 0, segments_done = 0;
  int tag = 0;
  uint64_t seq = 0, id = 0;
  bool entered_everywhere = false;  // some later stage was reached: whoever is late now has at least come

  bool done() const { return segments_done == segments; }
  int64_t width() const { return size_bytes(dtype); }
};

struct MpiComm::Segment {
  Call* call;  // null: given up, requests are left to MPI
  int64_t index = 0;
  int stage = 0;
  bool holds_scratch = false;
  std::vector<std::byte> scratch;
  std::vector<MPI_Request> requests;
  struct End {
    int peer;
    int64_t recv_bytes;  // -1 for a send
  };
  std::vector<End> ends;  // of `requests`

  // Elements [begin, begin + count) of chunk `owner` that this segment moves; chunks of an all_reduce end
  // with the data.
  struct Piece {
    int64_t begin, count;
  };
  Piece piece(int owner) const {
    const int64_t in_chunk = index * call->segment_count;
    const int64_t begin = owner * call->chunk + in_chunk;
    int64_t end = begin + std::min(call->segment_count, call->chunk - in_chunk);
    if (call->kind == Kind::AllReduce) end = std::min(end, call->count);
    return {begin, std::max<int64_t>(end - begin, 0)};
  }
};

class MpiComm::CallWork final : public Work {
 public:
  CallWork(MpiComm& comm, std::unique_ptr<Call> call)
      : comm_(comm), call_(std::move(call)), exceptions_at_start_(std::uncaught_exceptions()) {}
  ~CallWork() override {
    if (call_->done()) return;
    if (std::uncaught_exceptions() == exceptions_at_start_) {
      try {
        comm_.wait(*call_);
        return;
      } catch (const Error&) {  // nobody is left to tell; mark_broken makes the next exchange fail
      }
    }
    comm_.abandon(*call_);
  }
  void wait() override { comm_.wait(*call_); }
  bool poll() override {
    if (!call_->done()) comm_.session_.progress();
    return call_->done();
  }

 private:
  MpiComm& comm_;
  std::unique_ptr<Call> call_;
  int exceptions_at_start_;
};

MpiComm::MpiComm(MpiSession& session, FlightRecorder& recorder, Options options)
    : session_(session), recorder_(recorder), options_(std::move(options)) {
  const auto& ranks = options_.ranks;
  int world_rank = 0;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank), "MPI_Comm_rank");
  const auto me = std::find(ranks.begin(), ranks.end(), world_rank);
  HEARTH_REQUIRE(ranks.empty() || me != ranks.end(), "group {}: rank {} is not among its {} ranks",
                 options_.group, world_rank, ranks.size());
  // The lowest rank names the group: groups of one call are disjoint.
  const int color = ranks.empty() ? MPI_UNDEFINED : *std::min_element(ranks.begin(), ranks.end());
  check_mpi(MPI_Comm_split(options_.parent, color, static_cast<int>(me - ranks.begin()), &collective_comm_),
            "MPI_Comm_split");
  if (ranks.empty()) return;
  check_mpi(MPI_Comm_dup(collective_comm_, &peer_comm_), "MPI_Comm_dup");
  for (MPI_Comm comm : {collective_comm_, peer_comm_})
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(collective_comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(collective_comm_, &size_), "MPI_Comm_size");
  HEARTH_CHECK(
      size_ == static_cast<int>(ranks.size()), Internal,
      "group {}: this rank names {} members, {} ranks came: ranks disagree on the groups (please report)",
      options_.group, ranks.size(), size_);
  sends_to_.resize(ranks.size());
  recvs_from_.resize(ranks.size());
  group_id_ = recorder_.add_group(ranks);
  int* limit = nullptr;
  int known = 0;
  check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &known), "MPI_Comm_get_attr");
  if (known != 0) tag_limit_ = *limit;
  session_.add(*this);
}

MpiComm::~MpiComm() {
  session_.remove(*this);
  if (session_.broken()) return;
  for (MPI_Comm* comm : {&collective_comm_, &peer_comm_})
    if (*comm != MPI_COMM_NULL) MPI_Comm_free(comm);
}

// Tags are counted alike on all ranks of the group, because all make the same calls in the same order.
int MpiComm::collective_tag(int64_t count) {
  const auto limit = static_cast<uint64_t>(tag_limit_), n = static_cast<uint64_t>(count);
  HEARTH_CHECK(n < limit, Usage, "group {}: a collective of {} messages is too large for MPI's tags",
               options_.group, n);
  if (next_tag_ % limit + n > limit) next_tag_ += limit - next_tag_ % limit;  // a call's tags do not wrap
  const auto tag = static_cast<int>(next_tag_ % limit);
  next_tag_ += n;
  return tag;
}

int MpiComm::peer_tag(std::vector<uint64_t>& counters, int peer) {
  return static_cast<int>(counters[static_cast<size_t>(peer)]++ % static_cast<uint64_t>(tag_limit_));
}

WorkPtr MpiComm::start(Call fields) {
  auto call = std::make_unique<Call>(std::move(fields));
  const bool pair = call->kind == Kind::Send || call->kind == Kind::Recv;
  HEARTH_CHECK(!session_.broken(), Peer, "{} '{}' (group {}): an earlier exchange between ranks failed",
               op_name(call->kind), call->site, options_.group);
  HEARTH_REQUIRE(call->count >= 0, "{} '{}': count {} is negative", op_name(call->kind), call->site,
                 call->count);
  HEARTH_REQUIRE(!is_reduction(call->kind) || is_reducible(call->dtype),
                 "{} '{}': cannot reduce elements of type {}", op_name(call->kind), call->site,
                 config_name(call->dtype));
  call->seq = ++seq_;
  call->chunk = call->kind == Kind::AllReduce ? ceil_div(call->count, size_) : call->count;
  const int64_t limit = is_reduction(call->kind) ? kSegmentBytes : kMaxMessageBytes;
  call->segment_count = std::max<int64_t>(1, limit / call->width());
  if (call->kind == Kind::AllReduceDirect) call->segment_count = std::max<int64_t>(1, call->chunk);
  call->segments = size_ == 1 ? 0 : ceil_div(call->chunk, call->segment_count);
  call->id = recorder_.begin({.op = op_name(call->kind),
                              .site = call->site,
                              .group = options_.group,
                              .seq = call->seq,
                              .size_bytes = call->count * call->width(),
                              .dtype = call->dtype,
                              .group_id = group_id_,
                              .peer = pair ? options_.ranks[static_cast<size_t>(call->peer)] : -1});
  if (call->done()) recorder_.end(call->id);
  constexpr int kStages = 2;
  if (pair) {
    // One message per tag; a long one takes consecutive tags of this pair.
    auto& counters = call->kind == Kind::Send ? sends_to_ : recvs_from_;
    call->tag = peer_tag(counters, call->peer);
    for (int64_t s = 1; s < call->segments; ++s) peer_tag(counters, call->peer);
  } else if (call->segments > 0) {
    call->tag = collective_tag(call->segments * kStages);
  }
  for (int64_t s = 0; s < call->segments; ++s) {
    auto segment = std::make_unique<Segment>();
    segment->call = call.get();
    segment->index = s;
    if (is_reduction(call->kind)) {
      waiting_.push_back(std::move(segment));
    } else {
      post(*segment);
      active_.push_back(std::move(segment));
    }
  }
  session_.progress();
  recorder_.issued(call->id);
  return std::make_unique<CallWork>(*this, std::move(call));
}

void MpiComm::progress() {
  // Segments get scratch in call order on every rank, so the oldest unfinished one always has it everywhere.
  while (!waiting_.empty() && reductions_active_ < kReduceWindow) {
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    Segment& segment = *active_.back();
    segment.holds_scratch = true;
    ++reductions_active_;
    if (!scratch_.empty()) {
      segment.scratch = std::move(scratch_.back());
      scratch_.pop_back();
    }
    post(segment);
  }
  for (auto& segment : active_) {
    if (segment->call == nullptr) continue;
    int complete = 0;
    statuses_.resize(segment->requests.size());
    const int code = MPI_Testall(static_cast<int>(segment->requests.size()), segment->requests.data(),
                                 &complete, statuses_.data());
    check_completed(*segment, code);
    if (complete == 0) continue;
    check_lengths(*segment);
    advance(*segment);
  }
  std::erase_if(active_, [](const auto& segment) { return segment->call != nullptr && segment->stage < 0; });
}

void MpiComm::check_completed(const Segment& segment, int code) {
  if (code == MPI_SUCCESS) return;
  session_.mark_broken();
  const std::string what = fmt::format("{} '{}' (group {}, call {})", op_name(segment.call->kind),
                                       segment.call->site, options_.group, segment.call->seq);
  for (const MPI_Status& status : statuses_) {
    if (code != MPI_ERR_IN_STATUS || status.MPI_ERROR == MPI_ERR_PENDING) continue;
    int kind = MPI_SUCCESS;
    MPI_Error_class(status.MPI_ERROR, &kind);
    if (kind == MPI_ERR_TRUNCATE)
      report_different_calls(segment, fmt::format("{}: a longer message came than was expected", what));
    check_mpi(status.MPI_ERROR, what);
  }
  check_mpi(code, what);
}

// A message of the wrong length means that ranks make different calls.
void MpiComm::check_lengths(const Segment& segment) {
  for (size_t i = 0; i < segment.ends.size(); ++i) {
    const auto [peer, want] = segment.ends[i];
    if (want < 0) continue;
    int got = 0;
    check_mpi(MPI_Get_count(&statuses_[i], MPI_BYTE, &got), "MPI_Get_count");
    if (got == want) continue;
    report_different_calls(
        segment, fmt::format("{} '{}' (group {}, call {}): rank {} sent {} bytes, {} were expected",
                             op_name(segment.call->kind), segment.call->site, options_.group,
                             segment.call->seq, options_.ranks[static_cast<size_t>(peer)], got, want));
  }
}

// Of the kind Timeout, as a mismatch that shows only at the deadline is.
void MpiComm::report_different_calls(const Segment& segment, const std::string& what) {
  session_.mark_broken();
  recorder_.hold(segment.call->id);
  const std::string text = what + ": ranks make different calls";
  recorder_.raise_alarm(ErrorKind::Timeout, text);
  fail(ErrorKind::Timeout, "{}", text);
}

void MpiComm::advance(Segment& segment) {
  Call& call = *segment.call;
  segment.requests.clear();
  segment.ends.clear();
  if (segment.holds_scratch) {
    call.entered_everywhere = true;
    sum(segment);
    scratch_.push_back(std::move(segment.scratch));
    segment.holds_scratch = false;
    --reductions_active_;
    if (call.kind == Kind::AllReduce) {
      segment.stage = 1;
      post(segment);
      return;
    }
  }
  segment.stage = -1;  // finished; progress() removes it
  if (++call.segments_done == call.segments) recorder_.end(call.id);
}

void MpiComm::exchange(Segment& segment, int peer, const std::byte* out, int64_t out_bytes, std::byte* in,
                       int64_t in_bytes) {
  const Call& call = *segment.call;
  const bool pair = call.kind == Kind::Send || call.kind == Kind::Recv;
  MPI_Comm comm = pair ? peer_comm_ : collective_comm_;
  const auto offset = segment.index * (pair ? 1 : 2) + segment.stage;
  const auto tag = static_cast<int>(pair ? (call.tag + offset) % tag_limit_ : call.tag + offset);
  if (in_bytes > 0) {
    segment.requests.push_back(MPI_REQUEST_NULL);
    segment.ends.push_back({peer, in_bytes});
    check_mpi(MPI_Irecv(in, static_cast<int>(in_bytes), MPI_BYTE, peer, tag, comm, &segment.requests.back()),
              "MPI_Irecv");
  }
  if (out_bytes > 0) {
    segment.requests.push_back(MPI_REQUEST_NULL);
    segment.ends.push_back({peer, -1});
    check_mpi(
        MPI_Isend(out, static_cast<int>(out_bytes), MPI_BYTE, peer, tag, comm, &segment.requests.back()),
        "MPI_Isend");
  }
}

void MpiComm::post(Segment& segment) {
  switch (segment.call->kind) {
    case Kind::AllReduce:
      if (segment.stage == 0)
        post_reduce(segment);
      else
        post_gather(segment);
      return;
    case Kind::AllReduceDirect:
    case Kind::ReduceScatter:
      return post_reduce(segment);
    case Kind::AllGather:
      return post_gather(segment);
    default:
      return post_copies(segment);
  }
}

// Everybody's share of my piece comes into scratch, at (slot of the peer) x (bytes of the piece).
void MpiComm::post_reduce(Segment& segment) {
  const Call& call = *segment.call;
  const bool direct = call.kind == Kind::AllReduceDirect;
  const int64_t mine = segment.piece(direct ? 0 : rank_).count * call.width();
  const auto needed = static_cast<size_t>(mine * (size_ - 1));
  if (segment.scratch.size() < needed) segment.scratch.resize(needed);
  int64_t slot = 0;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const auto [begin, count] = segment.piece(direct ? 0 : peer);
    exchange(segment, peer, call.in + begin * call.width(), count * call.width(),
             segment.scratch.data() + slot * mine, mine);
    ++slot;
  }
}

void MpiComm::sum(Segment& segment) {
  const Call& call = *segment.call;
  const auto [begin, count] = segment.piece(call.kind == Kind::AllReduceDirect ? 0 : rank_);
  if (count == 0) return;
  std::vector<const void*> in;
  int64_t slot = 0;
  for (int peer = 0; peer < size_; ++peer)
    in.push_back(peer == rank_ ? call.in + begin * call.width()
                               : segment.scratch.data() + slot++ * count * call.width());
  const int64_t to = call.kind == Kind::ReduceScatter ? segment.index * call.segment_count : begin;
  reduce_in_order(in, call.out + to * call.width(), count, call.dtype, call.op);
}

// My piece goes to everybody, theirs come to their places in `out`. For an all_reduce the earlier sends from
// those places are complete by now, as receiving into a buffer that is still being sent would be a race.
void MpiComm::post_gather(Segment& segment) {
  const Call& call = *segment.call;
  const auto [begin, count] = segment.piece(rank_);
  const std::byte* mine = call.kind == Kind::AllGather
                              ? call.in + segment.index * call.segment_count * call.width()
                              : call.out + begin * call.width();
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const auto theirs = segment.piece(peer);
    exchange(segment, peer, mine, count * call.width(), call.out + theirs.begin * call.width(),
             theirs.count * call.width());
  }
}

void MpiComm::post_copies(Segment& segment) {
  const Call& call = *segment.call;
  const auto [begin, count] = segment.piece(0);
  const int64_t offset = begin * call.width(), bytes = count * call.width();
  switch (call.kind) {
    case Kind::AllToAll:
      for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        const int64_t at = segment.piece(peer).begin * call.width();
        exchange(segment, peer, call.in + at, bytes, call.out + at, bytes);
      }
      return;
    case Kind::Broadcast:
      if (rank_ != call.peer) return exchange(segment, call.peer, nullptr, 0, call.out + offset, bytes);
      for (int peer = 0; peer < size_; ++peer)
        if (peer != rank_) exchange(segment, peer, call.out + offset, bytes, nullptr, 0);
      return;
    case Kind::Send:
      return exchange(segment, call.peer, call.in + offset, bytes, nullptr, 0);
    default:
      return exchange(segment, call.peer, nullptr, 0, call.out + offset, bytes);
  }
}

void MpiComm::wait(Call& call) {
  if (call.done()) return;
  HEARTH_CHECK(!session_.broken(), Peer, "{} '{}' (group {}): an earlier exchange between ranks failed",
               op_name(call.kind), call.site, options_.group);
  recorder_.hold(call.id);
  if (!session_.wait([&] { return call.done(); }, options_.timeout_s)) give_up(call);
}

// Ranks whose messages the oldest unfinished segment still waits for; those that we wait to receive from come
// first.
std::string MpiComm::missing_ranks(Call& call) {
  std::vector<int> senders, receivers;
  for (const auto& segment : active_) {
    if (segment->call != &call) continue;
    for (size_t i = 0; i < segment->requests.size(); ++i) {
      int complete = 0;
      if (segment->requests[i] != MPI_REQUEST_NULL)
        MPI_Request_get_status(segment->requests[i], &complete, MPI_STATUS_IGNORE);
      else
        complete = 1;
      if (complete != 0) continue;
      const auto [peer, bytes] = segment->ends[i];
      (bytes >= 0 ? senders : receivers).push_back(options_.ranks[static_cast<size_t>(peer)]);
    }
  }
  auto& who = senders.empty() ? receivers : senders;
  std::sort(who.begin(), who.end());
  who.erase(std::unique(who.begin(), who.end()), who.end());
  std::string text;
  for (const int r : who) text += fmt::format("{}{}", text.empty() ? "" : ", ", r);
  return text;
}

void MpiComm::give_up(Call& call) {
  session_.mark_broken();
  const std::string pending = recorder_.describe_pending();
  const std::string who = missing_ranks(call);
  const std::string state = who.empty()               ? "it waits for an earlier call of this group"
                            : call.entered_everywhere ? fmt::format("rank {} has not finished it", who)
                                                      : fmt::format("rank {} has not entered it", who);
  const std::string text =
      fmt::format("{} '{}' (group {}, call {}, {} bytes {}): {} after {:.1f} s", op_name(call.kind),
                  call.site, options_.group, call.seq, call.count * call.width(), config_name(call.dtype),
                  state, options_.timeout_s);
  recorder_.raise_alarm(ErrorKind::Timeout, text);
  recorder_.fail(call.id);
  fail(ErrorKind::Timeout, "{}; pending here: {}", text, pending);
}

void MpiComm::abandon(Call& call) {
  session_.mark_broken();
  recorder_.fail(call.id);
  for (auto& segment : active_)
    if (segment->call == &call) segment->call = nullptr;  // kept: MPI may still write into its scratch
  std::erase_if(waiting_, [&](const auto& segment) { return segment->call == &call; });
}

WorkPtr MpiComm::all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view site) {
  const bool direct = count * size_bytes(dtype) <= kDirectBytes;
  auto* bytes = static_cast<std::byte*>(data);
  return start({.kind = direct ? Kind::AllReduceDirect : Kind::AllReduce,
                .op = op,
                .dtype = dtype,
                .in = bytes,
                .out = bytes,
                .count = count,
                .site = std::string(site)});
}

WorkPtr MpiComm::reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                                std::string_view site) {
  return start({.kind = Kind::ReduceScatter,
                .dtype = dtype,
                .in = static_cast<const std::byte*>(send),
                .out = static_cast<std::byte*>(recv),
                .count = count,
                .site = std::string(site)});
}

WorkPtr MpiComm::all_gather(const void* send, void* recv, int64_t count, DType dtype, std::string_view site) {
  const auto* in = static_cast<const std::byte*>(send);
  auto* out = static_cast<std::byte*>(recv);
  std::byte* mine = out + rank_ * count * size_bytes(dtype);
  if (in != mine && count > 0) std::memcpy(mine, in, static_cast<size_t>(count * size_bytes(dtype)));
  return start({.kind = Kind::AllGather,
                .dtype = dtype,
                .in = mine,
                .out = out,
                .count = count,
                .site = std::string(site)});
}

WorkPtr MpiComm::broadcast(void* data, int64_t count, DType dtype, int root, std::string_view site) {
  HEARTH_REQUIRE(root >= 0 && root < size_, "broadcast '{}': root {} is not in group {} of {}", site, root,
                 options_.group, size_);
  return start({.kind = Kind::Broadcast,
                .dtype = dtype,
                .out = static_cast<std::byte*>(data),
                .count = count,
                .peer = root,
                .site = std::string(site)});
}

WorkPtr MpiComm::all_to_all(const void* send, void* recv, int64_t count, DType dtype, std::string_view site) {
  const auto* in = static_cast<const std::byte*>(send);
  auto* out = static_cast<std::byte*>(recv);
  HEARTH_REQUIRE(in != out || count == 0, "all_to_all '{}': send and recv must be different buffers", site);
  const int64_t bytes = count * size_bytes(dtype);
  if (bytes > 0) std::memcpy(out + rank_ * bytes, in + rank_ * bytes, static_cast<size_t>(bytes));
  return start({.kind = Kind::AllToAll,
                .dtype = dtype,
                .in = in,
                .out = out,
                .count = count,
                .site = std::string(site)});
}

void MpiComm::check_peer(std::string_view op, int peer, std::string_view site) const {
  HEARTH_REQUIRE(peer >= 0 && peer < size_ && peer != rank_,
                 "{} '{}': {} is not a peer of rank {} in group {} of {}", op, site, peer, rank_,
                 options_.group, size_);
}

WorkPtr MpiComm::send(const void* data, int64_t count, DType dtype, int peer, std::string_view site) {
  check_peer("send", peer, site);
  return start({.kind = Kind::Send,
                .dtype = dtype,
                .in = static_cast<const std::byte*>(data),
                .count = count,
                .peer = peer,
                .site = std::string(site)});
}

WorkPtr MpiComm::recv(void* data, int64_t count, DType dtype, int peer, std::string_view site) {
  check_peer("recv", peer, site);
  return start({.kind = Kind::Recv,
                .dtype = dtype,
                .out = static_cast<std::byte*>(data),
                .count = count,
                .peer = peer,
                .site = std::string(site)});
}

// Everybody waits for a byte of everybody.
void MpiComm::barrier(std::string_view site) {
  std::vector<std::byte> flags(static_cast<size_t>(size_));
  all_gather(flags.data() + rank_, flags.data(), 1, DType::U8, site)->wait();
}

}  // namespace hearth
