// MPI as this process uses it: start and end of the library, error codes as Error{Peer}, and one place where
// everything outstanding makes progress (a rank that waits for one communicator must still serve the others,
// or two ranks that wait for different ones would wait for ever). mpi.h is included in parallel/ only,
// through this header. One thread at a time (MPI_THREAD_SERIALIZED): the main thread, or the one that has the
// turn (side_by_side.h).
#pragma once

#include <mpi.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

// Throws Error{Peer} naming `call` unless `code` is MPI_SUCCESS.
void check_mpi(int code, std::string_view call);

class MpiSession {
 public:
  // Something with requests outstanding.
  class Client {
   public:
    virtual ~Client() = default;
    virtual void progress() = 0;  // never blocks
  };

  MpiSession();   // MPI_Init_thread; throws Error{Peer} when MPI refuses
  ~MpiSession();  // MPI_Finalize, unless broken or an exception is on its way (a peer may never come)
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  void add(Client& client) { clients_.push_back(&client); }
  void remove(Client& client);
  void progress();

  // Progresses until done() or `timeout_s` has passed; false in the latter case.
  bool wait(const std::function<bool()>& done, double timeout_s);

  // After a collective was given up its buffers may be gone while MPI still knows them: no further MPI call
  // is safe but MPI_Abort.
  void mark_broken() { broken_ = true; }
  bool broken() const { return broken_; }

 private:
  std::vector<Client*> clients_;
  bool broken_ = false;
  int exceptions_at_start_;
};

// "Open MPI v4.1.4, ...": one line; works before MPI_Init.
std::string mpi_library_version();

}  // namespace hearth
