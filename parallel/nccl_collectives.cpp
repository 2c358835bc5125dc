#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.h"
#include "parallel/cuda_handles.h"
#include "parallel/library_collectives.h"
#include "parallel/nccl_calls.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// Holds a stream back while it lives, so that the host gets ahead of the device as it is in training: what
// the device does is measured, not how fast the host asks for it. It opens by itself after a second, where
// the host is stuck behind it: in a launch that waits for the device, or a stream that is full.
class Gate {
 public:
  explicit Gate(cudaStream_t stream) {
    auto* mine = new std::shared_ptr<State>(state_);
    const auto wait = [](void* shared) {
      const std::unique_ptr<std::shared_ptr<State>> state(static_cast<std::shared_ptr<State>*>(shared));
      while (!(*state)->open && Clock::now() < (*state)->until) std::this_thread::yield();
    };
    check_cuda(cudaLaunchHostFunc(stream, wait, mine), "cudaLaunchHostFunc");
  }
  ~Gate() { state_->open = true; }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

 private:
  struct State {
    std::atomic<bool> open{false};
    Clock::time_point until = Clock::now() + std::chrono::seconds(1);
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class NcclCollectives final : public LibraryCollectives {
 public:
  NcclCollectives(Job& job, DType dtype)
      : type_(nccl_type(dtype)),
        timeout_s_(job.options.timeout_s),
        compute_(make_high_priority_stream()),
        own_(make_high_priority_stream()),
        start_(make_timing_event()),
        stop_(make_timing_event()) {
    ControlPlane& control = *job.control;
    const ncclUniqueId id = share_nccl_id(control, control.all_ranks(), "bench.library");
    check_nccl(ncclCommInitRank(&comm_, control.world_size(), id, control.rank()), "ncclCommInitRank",
               nullptr);
  }
  ~NcclCollectives() override {
    if (std::uncaught_exceptions() == exceptions_at_start_) {
      ncclCommDestroy(comm_);
      return;
    }
    abort_in_background(comm_);  // a kernel may spin for a peer
  }

  std::byte* allocate(int64_t size_bytes) override {
    return static_cast<std::byte*>(memory_.emplace_back(allocate_cuda(size_bytes)).get());
  }
  // The streams do not wait for the default one, so the host waits for it.
  void fill(std::byte* to, int value, int64_t size_bytes) override {
    check_cuda(cudaMemset(to, value, static_cast<size_t>(size_bytes)), "cudaMemset");
    check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  }
  void copy(void* to, const void* from, int64_t size_bytes) override {
    check_cuda(cudaMemcpy(to, from, static_cast<size_t>(size_bytes), cudaMemcpyDefault), "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  }

  void all_reduce(void* data, int64_t count) override {
    check_nccl(ncclAllReduce(data, data, static_cast<size_t>(count), type_, ncclSum, comm_, own_.get()),
               "ncclAllReduce", comm_);
  }
  void reduce_scatter(const void* send, void* recv, int64_t count) override {
    check_nccl(ncclReduceScatter(send, recv, static_cast<size_t>(count), type_, ncclSum, comm_, own_.get()),
               "ncclReduceScatter", comm_);
  }
  void all_gather(const void* send, void* recv, int64_t count) override {
    check_nccl(ncclAllGather(send, recv, static_cast<size_t>(count), type_, comm_, own_.get()),
               "ncclAllGather", comm_);
  }

  StreamHandle compute_stream() const override { return compute_.get(); }
  void run(CollectiveSide side, const std::function<void()>& calls) override {
    calls();
    check_cuda(cudaEventRecord(stop_.get(), stream_of(side)), "cudaEventRecord");
    wait_for_stop();
  }
  double seconds(CollectiveSide side, const std::function<void()>& lead,
                 const std::function<void()>& calls) override {
    {
      const Gate gate(stream_of(side));
      lead();
      check_cuda(cudaEventRecord(start_.get(), stream_of(side)), "cudaEventRecord");
      calls();
      check_cuda(cudaEventRecord(stop_.get(), stream_of(side)), "cudaEventRecord");
    }
    wait_for_stop();
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, start_.get(), stop_.get()), "cudaEventElapsedTime");
    return milliseconds / 1e3;
  }

 private:
  cudaStream_t stream_of(CollectiveSide side) const {
    return side == CollectiveSide::Hearth ? compute_.get() : own_.get();
  }
  // Polls: cudaEventSynchronize has no deadline, and the library's calls have no watchdog.
  void wait_for_stop() {
    const auto deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s_));
    for (;;) {
      const cudaError_t code = cudaEventQuery(stop_.get());
      if (code == cudaSuccess) return;
      if (code != cudaErrorNotReady) check_cuda(code, "a measured collective");
      HEARTH_CHECK(Clock::now() < deadline, Timeout, "measured collectives did not end within {:.1f} s",
                   timeout_s_);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  ncclDataType_t type_;
  double timeout_s_;
  CudaStream compute_, own_;
  CudaEvent start_, stop_;
  std::vector<CudaMemory> memory_;
  ncclComm_t comm_ = nullptr;
  int exceptions_at_start_ = std::uncaught_exceptions();
};

}  // namespace

std::unique_ptr<LibraryCollectives> make_nccl_collectives(Job& job, DType dtype) {
  return std::make_unique<NcclCollectives>(job, dtype);
}

}  // namespace hearth
