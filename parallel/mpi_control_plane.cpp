#include "parallel/mpi_control_plane.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"

namespace hearth {
namespace {

// Rank 0 knows who is missing, the others know only that rank 0 has not answered: past the deadline, when the
// alarm is out, they give it time to speak first.
constexpr double kGraceForRootS = 3.0;

MPI_Comm duplicate(MPI_Comm of) {
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(of, &comm), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return comm;
}

std::string list(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size() && i < 8; ++i)
    text += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  if (ranks.size() > 8) text += fmt::format(" and {} more", ranks.size() - 8);
  return text;
}

// Texts of all ranks in one message: (length, bytes) each.
std::string pack(const std::vector<std::string>& texts) {
  std::string out;
  for (const auto& text : texts) {
    const auto length = static_cast<uint64_t>(text.size());
    out.append(reinterpret_cast<const char*>(&length), sizeof(length));
    out += text;
  }
  return out;
}

std::vector<std::string> unpack(std::string_view bytes) {
  std::vector<std::string> texts;
  while (!bytes.empty()) {
    uint64_t length = 0;
    HEARTH_ASSERT(bytes.size() >= sizeof(length));
    std::memcpy(&length, bytes.data(), sizeof(length));
    bytes.remove_prefix(sizeof(length));
    HEARTH_ASSERT(bytes.size() >= length);
    texts.emplace_back(bytes.substr(0, length));
    bytes.remove_prefix(length);
  }
  return texts;
}

}  // namespace

class MpiControlPlane::Call {
 public:
  Call(MpiControlPlane& plane, std::string_view op, std::string_view site, size_t bytes)
      : plane_(plane), op_(op), site_(site), start_(FlightRecorder::Clock::now()) {
    HEARTH_CHECK(!plane.session_.broken(), Peer, "{} {}: an earlier exchange between ranks failed", op, site);
    id_ = plane.recorder_.begin({.op = op,
                                 .site = site,
                                 .group = plane.group_,
                                 .seq = plane.calls_ + 1,
                                 .size_bytes = static_cast<int64_t>(bytes),
                                 .group_id = plane.group_id_});
    plane.recorder_.hold(id_);
  }
  ~Call() {
    if (done_)
      plane_.recorder_.end(id_);
    else
      plane_.recorder_.fail(id_);
  }
  void set_done() { done_ = true; }

  // Progresses until done(); past the deadline throws Error{Timeout} with the ranks that missing() returns.
  template <class Done, class Missing>
  void wait(Done done, Missing missing) {
    const std::chrono::duration<double> past = FlightRecorder::Clock::now() - start_;
    if (plane_.session_.wait(done, std::max(plane_.timeout_s_ - past.count(), 0.0))) return;
    std::vector<int> ranks = missing();
    for (int& r : ranks) r = plane_.job_rank(r);
    const std::string who = ranks.empty() ? "some rank has not taken our message"
                                          : fmt::format("rank {} has not entered it", list(ranks));
    const std::string text = fmt::format("{} '{}': {} after {:.1f} s", op_, site_, who, plane_.timeout_s_);
    plane_.recorder_.raise_alarm(ErrorKind::Timeout, text);
    if (plane_.rank_ != 0 && plane_.session_.wait(done, kGraceForRootS)) return;
    plane_.session_.mark_broken();
    fail(ErrorKind::Timeout, "{}; pending here: {}", text, plane_.recorder_.describe_pending());
  }

 private:
  MpiControlPlane& plane_;
  std::string op_, site_;
  FlightRecorder::Clock::time_point start_;
  uint64_t id_ = 0;
  bool done_ = false;
};

MpiControlPlane::MpiControlPlane(FlightRecorder& recorder, double timeout_s)
    : recorder_(recorder),
      own_session_(std::make_unique<MpiSession>()),
      session_(*own_session_),
      timeout_s_(timeout_s) {
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &world_size_), "MPI_Comm_size");
  comm_ = duplicate(MPI_COMM_WORLD);
  ending_ = duplicate(MPI_COMM_WORLD);
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(node, &local_rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &local_world_size_), "MPI_Comm_size");
  check_mpi(MPI_Comm_free(&node), "MPI_Comm_free");
  int* limit = nullptr;
  int known = 0;
  check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &known), "MPI_Comm_get_attr");
  if (known != 0) tag_limit_ = *limit;
  char name[256] = {};
  host_ = ::gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

MpiControlPlane::MpiControlPlane(MpiControlPlane& whole, std::string name, int first, int count)
    : recorder_(whole.recorder_),
      session_(whole.session_),
      group_(std::move(name)),
      timeout_s_(whole.timeout_s_),
      rank_(whole.rank_ - first),
      world_size_(count),
      local_rank_(whole.local_rank_),
      local_world_size_(whole.local_world_size_),
      first_(first),
      tag_limit_(whole.tag_limit_),
      host_(whole.host_) {
  HEARTH_REQUIRE(0 <= rank_ && rank_ < count, "part '{}': rank {} is not among ranks {} to {}", group_,
                 whole.rank_, first, first + count - 1);
  whole.barrier("split." + group_);  // MPI_Comm_split has no deadline, this has
  check_mpi(MPI_Comm_split(whole.comm_, first, rank_, &comm_), "MPI_Comm_split");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  ending_ = duplicate(comm_);
  std::vector<int> ranks(static_cast<size_t>(count));
  std::iota(ranks.begin(), ranks.end(), first);
  group_id_ = recorder_.add_group(std::move(ranks));
}

// MPI_Finalize, which comes with the session, frees all communicators and waits for all ranks.
MpiControlPlane::~MpiControlPlane() {
  if (own_session_)
    recorder_.hold(recorder_.begin({.op = "finalize", .site = "mpi", .group = group_, .seq = calls_ + 1}));
}

int MpiControlPlane::next_tags() {
  const int slots = tag_limit_ / 2;
  return static_cast<int>(calls_++ % static_cast<uint64_t>(slots)) * 2;
}

void MpiControlPlane::send(std::string_view text, int to, int tag, std::vector<MPI_Request>& requests) {
  HEARTH_CHECK(text.size() <= static_cast<size_t>(std::numeric_limits<int>::max()), Usage,
               "control plane: a text of {} bytes is over the limit of 2 GiB", text.size());
  requests.push_back(MPI_REQUEST_NULL);
  check_mpi(MPI_Isend(text.data(), static_cast<int>(text.size()), MPI_BYTE, to, tag, comm_, &requests.back()),
            "MPI_Isend");
}

std::string MpiControlPlane::receive(int from, int tag, Call& call) {
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  const auto missing = [from] { return std::vector<int>{from}; };
  call.wait(
      [&] {
        int there = 0;
        check_mpi(MPI_Improbe(from, tag, comm_, &there, &message, &status), "MPI_Improbe");
        return there != 0;
      },
      missing);
  int bytes = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
  std::string text(static_cast<size_t>(bytes), '\0');
  std::vector<MPI_Request> request(1, MPI_REQUEST_NULL);
  check_mpi(MPI_Imrecv(text.data(), bytes, MPI_BYTE, &message, &request[0]), "MPI_Imrecv");
  finish(request, call);
  return text;
}

void MpiControlPlane::finish(std::vector<MPI_Request>& requests, Call& call) {
  call.wait(
      [&] {
        int done = 0;
        check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
                  "MPI_Testall");
        return done != 0;
      },
      [] { return std::vector<int>{}; });
}

std::vector<std::string> MpiControlPlane::gather_at_root(std::string_view mine, int tag, Call& call) {
  std::vector<std::string> texts(static_cast<size_t>(world_size_));
  texts[0] = mine;
  std::vector<int> missing;
  for (int r = 1; r < world_size_; ++r) missing.push_back(r);
  const auto collect = [&] {
    std::erase_if(missing, [&](int r) {
      int there = 0;
      check_mpi(MPI_Iprobe(r, tag, comm_, &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
      if (there != 0) texts[static_cast<size_t>(r)] = receive(r, tag, call);
      return there != 0;
    });
    return missing.empty();
  };
  call.wait(collect, [&] { return missing; });
  return texts;
}

std::vector<std::string> MpiControlPlane::all_gather(std::string_view mine, std::string_view site) {
  Call call(*this, "all_gather", site, mine.size());
  const int tag = next_tags();
  std::vector<MPI_Request> requests;
  std::vector<std::string> texts;
  if (rank_ == 0) {
    texts = gather_at_root(mine, tag, call);
    const std::string packed = pack(texts);
    for (int r = 1; r < world_size_; ++r) send(packed, r, tag + 1, requests);
    finish(requests, call);
  } else {
    send(mine, 0, tag, requests);
    texts = unpack(receive(0, tag + 1, call));
    finish(requests, call);
  }
  call.set_done();
  return texts;
}

std::string MpiControlPlane::broadcast(std::string_view from_root, std::string_view site, int root) {
  HEARTH_REQUIRE(root >= 0 && root < world_size_, "broadcast '{}': root {} is not a rank of {}", site, root,
                 world_size_);
  Call call(*this, "broadcast", site, rank_ == root ? from_root.size() : 0);
  const int tag = next_tags();
  std::vector<MPI_Request> requests;
  std::string text;
  if (rank_ == root) {
    text = from_root;
    for (int r = 0; r < world_size_; ++r)
      if (r != root) send(text, r, tag, requests);
    finish(requests, call);
  } else {
    text = receive(root, tag, call);
  }
  call.set_done();
  return text;
}

void MpiControlPlane::barrier(std::string_view site) {
  all_gather("", site);
}

FailureMeeting MpiControlPlane::meet_after_error(std::string_view message, double wait_s) {
  if (session_.broken()) return {.all_failed = false, .speak = true};
  // A digest would do; the first bytes are as good and need no hash: equal errors are equal from the start.
  constexpr size_t kWidth = 1024;
  std::string mine(message.substr(0, kWidth));
  mine.resize(kWidth, '\0');
  std::string all(kWidth * static_cast<size_t>(world_size_), '\0');
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(mine.data(), kWidth, MPI_BYTE, all.data(), kWidth, MPI_BYTE, ending_, &request),
            "MPI_Iallgather");
  const auto done = [&] {
    int flag = 0;
    check_mpi(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test");
    return flag != 0;
  };
  if (!session_.wait(done, wait_s)) {
    session_.mark_broken();
    return {.all_failed = false, .speak = true};
  }
  const auto text_of = [&](int r) {
    return std::string_view(all).substr(kWidth * static_cast<size_t>(r), kWidth);
  };
  bool speak = true;
  for (int r = 0; r < rank_; ++r) speak = speak && text_of(r) != mine;
  return {.all_failed = true, .speak = speak};
}

void MpiControlPlane::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  ::_exit(exit_code);  // MPI_Abort does not promise not to return
}

}  // namespace hearth
