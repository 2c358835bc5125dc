#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "parallel/library_collectives.h"
#include "parallel/mpi_control_plane.h"
#include "parallel/mpi_session.h"

namespace hearth {
namespace {

// MPI counts are int.
int mpi_count(int64_t count) {
  HEARTH_REQUIRE(count <= std::numeric_limits<int>::max(), "MPI cannot move {} elements in one call", count);
  return static_cast<int>(count);
}

class MpiCollectives final : public LibraryCollectives {
 public:
  explicit MpiCollectives(MpiControlPlane& plane) : session_(plane.session()) {
    check_mpi(MPI_Comm_dup(plane.communicator(), &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCollectives() override {
    if (!session_.broken()) MPI_Comm_free(&comm_);
  }

  std::byte* allocate(int64_t size_bytes) override {
    return memory_.emplace_back(static_cast<size_t>(size_bytes)).data();
  }
  void fill(std::byte* to, int value, int64_t size_bytes) override {
    std::memset(to, value, static_cast<size_t>(size_bytes));
  }
  void copy(void* to, const void* from, int64_t size_bytes) override {
    std::memcpy(to, from, static_cast<size_t>(size_bytes));
  }

  void all_reduce(void* data, int64_t count) override {
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, mpi_count(count), MPI_FLOAT, MPI_SUM, comm_),
              "MPI_Allreduce");
  }
  void reduce_scatter(const void* send, void* recv, int64_t count) override {
    check_mpi(MPI_Reduce_scatter_block(send, recv, mpi_count(count), MPI_FLOAT, MPI_SUM, comm_),
              "MPI_Reduce_scatter_block");
  }
  void all_gather(const void* send, void* recv, int64_t count) override {
    const int n = mpi_count(count);
    check_mpi(MPI_Allgather(send, n, MPI_FLOAT, recv, n, MPI_FLOAT, comm_), "MPI_Allgather");
  }

  StreamHandle compute_stream() const override { return nullptr; }
  void run(CollectiveSide, const std::function<void()>& calls) override { calls(); }
  double seconds(CollectiveSide, const std::function<void()>& lead,
                 const std::function<void()>& calls) override {
    lead();
    const auto start = std::chrono::steady_clock::now();
    calls();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  MpiSession& session_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<std::vector<std::byte>> memory_;
};

}  // namespace

std::unique_ptr<LibraryCollectives> make_mpi_collectives(Job& job, DType dtype) {
  HEARTH_REQUIRE(dtype == DType::F32,
                 "MPI adds no elements of type {}: between host memories fp32 is measured",
                 config_name(dtype));
  auto& plane = dynamic_cast<MpiControlPlane&>(*job.control);
  plane.barrier("bench.library");  // MPI_Comm_dup has no deadline, this has
  return std::make_unique<MpiCollectives>(plane);
}

}  // namespace hearth
