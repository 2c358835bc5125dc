#include "parallel/mpi_session.h"

#include <sched.h>

#include <algorithm>
#include <exception>
#include <thread>

#include "base/error.h"

namespace hearth {

void check_mpi(int code, std::string_view call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail(ErrorKind::Peer, "{} failed: {}", call, std::string_view(text, static_cast<size_t>(length)));
}

MpiSession::MpiSession() : exceptions_at_start_(std::uncaught_exceptions()) {
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  HEARTH_CHECK(provided >= MPI_THREAD_SERIALIZED, Peer,
               "MPI offers thread level {} but MPI_THREAD_SERIALIZED ({}) is needed: use an Open MPI built "
               "with threads",
               provided, static_cast<int>(MPI_THREAD_SERIALIZED));
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiSession::~MpiSession() {
  if (broken_ || std::uncaught_exceptions() > exceptions_at_start_) return;
  MPI_Finalize();
}

void MpiSession::remove(Client& client) {
  clients_.erase(std::remove(clients_.begin(), clients_.end(), &client), clients_.end());
}

void MpiSession::progress() {
  for (Client* client : clients_) client->progress();
}

bool MpiSession::wait(const std::function<bool()>& done, double timeout_s) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto deadline =
      start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
  // Spin first (a peer on another core answers in microseconds), then yield (ranks may share cores), then
  // sleep (the peer computes; its core is needed more than our latency).
  constexpr int kSpins = 200;
  constexpr auto kYieldFor = std::chrono::milliseconds(20);
  constexpr auto kNap = std::chrono::microseconds(100);
  for (int64_t polls = 0;; ++polls) {
    progress();
    if (done()) return true;
    if (polls < kSpins) continue;
    const auto now = Clock::now();
    if (now >= deadline) return false;
    if (now - start < kYieldFor)
      sched_yield();
    else
      std::this_thread::sleep_for(kNap);
  }
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown";
  const std::string_view version(text, static_cast<size_t>(length));
  // Open MPI counts the terminating zero among the characters.
  return std::string(version.substr(0, version.find_first_of(std::string_view("\n\r\0", 3))));
}

}  // namespace hearth
