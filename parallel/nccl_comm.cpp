#include "parallel/nccl_comm.h"

#include <fmt/core.h>
#include <nccl.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <thread>

#include "parallel/cuda_handles.h"
#include "parallel/nccl_calls.h"
#include "parallel/nccl_watchdog.h"
#include "parallel/single_comm.h"

namespace hearth {
namespace {

class NcclComm final : public Comm {
 public:
  NcclComm(FlightRecorder& recorder, NcclOptions options, int rank, const ncclUniqueId& id);
  ~NcclComm() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(options_.ranks.size()); }
  std::string_view backend() const override { return "nccl"; }
  const std::string& group() const override { return options_.group; }
  void set_compute_stream(StreamHandle stream) override { compute_ = static_cast<cudaStream_t>(stream); }

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
  std::shared_ptr<void> allocate(int64_t size_bytes) override;

 private:
  class FlightWork;
  struct Window;
  // Orders `enqueue` (the NCCL call, on stream_) after the compute stream, and follows it.
  template <class Enqueue>
  WorkPtr start(std::string_view op, int64_t count, DType dtype, std::string_view site, Enqueue enqueue,
                int peer = -1);
  void check_peer(std::string_view op, int peer, std::string_view site) const;
  // A call of all ranks that blocks the host, under the watchdog's eye.
  void set_up(std::string_view op, const std::string& what, const std::function<void()>& call);

  NcclOptions options_;
  FlightRecorder& recorder_;
  int rank_;
  ncclComm_t comm_ = nullptr;
  CudaStream stream_;
  CudaEvent ready_;  // the compute stream's work so far
  CudaMemory barrier_flag_;
  cudaStream_t compute_ = nullptr;  // the legacy default stream until set
  int group_id_;                    // of the flight recorder
  uint64_t seq_ = 0;
  int exceptions_at_start_ = std::uncaught_exceptions();
  std::unique_ptr<NcclWatchdog> watchdog_;  // last: gone before what it looks at
};

class NcclComm::FlightWork final : public Work {
 public:
  FlightWork(NcclComm& comm, NcclWatchdog::Flight& flight)
      : comm_(comm), flight_(flight), exceptions_at_start_(std::uncaught_exceptions()) {}
  ~FlightWork() override {
    // The compute stream must not touch the buffers before the collective is through with them.
    if (!waited_ && std::uncaught_exceptions() == exceptions_at_start_)
      cudaStreamWaitEvent(comm_.compute_, flight_.done.get(), 0);
    comm_.watchdog_->release(flight_);
  }
  void wait() override {
    comm_.watchdog_->check();
    if (waited_) return;
    check_cuda(cudaStreamWaitEvent(comm_.compute_, flight_.done.get(), 0), "cudaStreamWaitEvent");
    waited_ = true;
  }
  bool poll() override {
    comm_.watchdog_->check();
    const cudaError_t code = cudaEventQuery(flight_.done.get());
    if (code == cudaErrorNotReady) return false;
    check_cuda(code, flight_.what);
    return true;
  }

 private:
  NcclComm& comm_;
  NcclWatchdog::Flight& flight_;
  int exceptions_at_start_;
  bool waited_ = false;
};

// Memory that every rank of the communicator sees. Left to the process's end where the job is failing: the
// communicator may be gone or aborted, and a peer may still be writing.
struct NcclComm::Window {
  NcclComm& comm;
  void* memory = nullptr;
  ncclWindow_t handle = nullptr;
  int exceptions_at_start = std::uncaught_exceptions();

  explicit Window(NcclComm& owner) : comm(owner) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() {
    if (std::uncaught_exceptions() > exceptions_at_start || comm.watchdog_->failed()) return;
    cudaStreamSynchronize(comm.compute_);       // kernels that use the memory
    cudaStreamSynchronize(comm.stream_.get());  // the last call is through, here and on the peers
    if (handle != nullptr) ncclCommWindowDeregister(comm.comm_, handle);
    if (memory != nullptr) ncclMemFree(memory);
  }
};

NcclComm::NcclComm(FlightRecorder& recorder, NcclOptions options, int rank, const ncclUniqueId& id)
    : options_(std::move(options)),
      recorder_(recorder),
      rank_(rank),
      group_id_(recorder.add_group(options_.ranks)) {
  stream_ = make_high_priority_stream();
  ready_ = make_event();
  barrier_flag_ = allocate_cuda(sizeof(int32_t));
  check_cuda(cudaMemset(barrier_flag_.get(), 0, sizeof(int32_t)), "cudaMemset");
  watchdog_ = std::make_unique<NcclWatchdog>(recorder_, NcclWatchdog::Options{.device = options_.device,
                                                                              .timeout_s = options_.timeout_s,
                                                                              .on_fatal = options_.on_fatal});
  // Blocking mode: the non-blocking one pays a thread per call, and the watchdog already ends a start-up that
  // hangs.
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 1;
  config.CTAPolicy = NCCL_CTA_POLICY_ZERO;  // of calls between memory of allocate()
  if (options_.max_ctas > 0) config.maxCTAs = options_.max_ctas;
  set_up("init", fmt::format("start-up of NCCL group {}", options_.group), [&] {
    check_nccl(ncclCommInitRankConfig(&comm_, size(), id, rank_, &config), "ncclCommInitRankConfig", nullptr);
  });
  watchdog_->watch(comm_);
}

void NcclComm::set_up(std::string_view op, const std::string& what, const std::function<void()>& call) {
  const uint64_t id = recorder_.begin(
      {.op = op, .site = "nccl", .group = options_.group, .seq = ++seq_, .group_id = group_id_});
  recorder_.hold(id);
  auto& flight = watchdog_->begin(id, what);
  call();
  watchdog_->completed(flight);
  watchdog_->release(flight);
}

NcclComm::~NcclComm() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  if (!unwinding) cudaStreamSynchronize(stream_.get());  // under the watchdog's eye
  const bool idle = !unwinding || watchdog_->idle();
  const bool aborted = watchdog_->unwatch();
  if (comm_ == nullptr || aborted) return;
  if (idle) {
    ncclCommDestroy(comm_);
    return;
  }
  abort_in_background(comm_);  // the job is failing, and a kernel may spin for a peer
}

template <class Enqueue>
WorkPtr NcclComm::start(std::string_view op, int64_t count, DType dtype, std::string_view site,
                        Enqueue enqueue, int peer) {
  watchdog_->check();
  HEARTH_REQUIRE(count >= 0, "{} '{}': count {} is negative", op, site, count);
  const int64_t bytes = count * size_bytes(dtype);
  const uint64_t id = recorder_.begin({.op = op,
                                       .site = site,
                                       .group = options_.group,
                                       .seq = ++seq_,
                                       .size_bytes = bytes,
                                       .dtype = dtype,
                                       .group_id = group_id_,
                                       .peer = peer < 0 ? -1 : options_.ranks[static_cast<size_t>(peer)]});
  recorder_.hold(id);  // the device waits, in the order of its streams
  auto& flight = watchdog_->begin(id, fmt::format("{} '{}' (group {}, call {}, {} bytes {})", op, site,
                                                  options_.group, seq_, bytes, config_name(dtype)));
  check_cuda(cudaEventRecord(ready_.get(), compute_), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(stream_.get(), ready_.get(), 0), "cudaStreamWaitEvent");
  if (count > 0) {
    const ncclResult_t code = enqueue();
    // NCCL may connect to peers inside the call; a deadline that passes there aborts the call with an error
    // of NCCL's own, and the deadline is the cause to report.
    if (code != ncclSuccess) watchdog_->check();
    check_nccl(code, flight.what, comm_);
  }
  check_cuda(cudaEventRecord(flight.done.get(), stream_.get()), "cudaEventRecord");
  recorder_.issued(id);  // before the watchdog can end the call
  watchdog_->enqueued(flight);
  return std::make_unique<FlightWork>(*this, flight);
}

WorkPtr NcclComm::all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view site) {
  const auto type = nccl_type(dtype);
  return start("all_reduce", count, dtype, site, [&] {
    return ncclAllReduce(data, data, static_cast<size_t>(count), type,
                         op == ReduceOp::Sum ? ncclSum : ncclMax, comm_, stream_.get());
  });
}

WorkPtr NcclComm::reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                                 std::string_view site) {
  const auto type = nccl_type(dtype);
  return start("reduce_scatter", count, dtype, site, [&] {
    return ncclReduceScatter(send, recv, static_cast<size_t>(count), type, ncclSum, comm_, stream_.get());
  });
}

// The operations that only move data move bytes: every element type works.
WorkPtr NcclComm::all_gather(const void* send, void* recv, int64_t count, DType dtype,
                             std::string_view site) {
  const auto bytes = static_cast<size_t>(count * size_bytes(dtype));
  return start("all_gather", count, dtype, site,
               [&] { return ncclAllGather(send, recv, bytes, ncclInt8, comm_, stream_.get()); });
}

WorkPtr NcclComm::broadcast(void* data, int64_t count, DType dtype, int root, std::string_view site) {
  HEARTH_REQUIRE(root >= 0 && root < size(), "broadcast '{}': root {} is not in group {} of {}", site, root,
                 options_.group, size());
  const auto bytes = static_cast<size_t>(count * size_bytes(dtype));
  return start("broadcast", count, dtype, site,
               [&] { return ncclBroadcast(data, data, bytes, ncclInt8, root, comm_, stream_.get()); });
}

WorkPtr NcclComm::all_to_all(const void* send, void* recv, int64_t count, DType dtype,
                             std::string_view site) {
  HEARTH_REQUIRE(send != recv || count == 0, "all_to_all '{}': send and recv must be different buffers",
                 site);
  const auto bytes = static_cast<size_t>(count * size_bytes(dtype));
  const auto* in = static_cast<const char*>(send);
  auto* out = static_cast<char*>(recv);
  return start("all_to_all", count, dtype, site, [&] {
    ncclResult_t code = ncclGroupStart();
    for (int peer = 0; peer < size() && code == ncclSuccess; ++peer) {
      const auto at = static_cast<size_t>(peer) * bytes;
      code = ncclSend(in + at, bytes, ncclInt8, peer, comm_, stream_.get());
      if (code == ncclSuccess) code = ncclRecv(out + at, bytes, ncclInt8, peer, comm_, stream_.get());
    }
    const ncclResult_t end = ncclGroupEnd();  // always: an open group would swallow the next calls
    return code == ncclSuccess ? end : code;
  });
}

void NcclComm::check_peer(std::string_view op, int peer, std::string_view site) const {
  HEARTH_REQUIRE(peer >= 0 && peer < size() && peer != rank_,
                 "{} '{}': {} is not a peer of rank {} in group {} of {}", op, site, peer, rank_,
                 options_.group, size());
}

WorkPtr NcclComm::send(const void* data, int64_t count, DType dtype, int peer, std::string_view site) {
  check_peer("send", peer, site);
  const auto bytes = static_cast<size_t>(count * size_bytes(dtype));
  const auto enqueue = [&] { return ncclSend(data, bytes, ncclInt8, peer, comm_, stream_.get()); };
  return start("send", count, dtype, site, enqueue, peer);
}

WorkPtr NcclComm::recv(void* data, int64_t count, DType dtype, int peer, std::string_view site) {
  check_peer("recv", peer, site);
  const auto bytes = static_cast<size_t>(count * size_bytes(dtype));
  const auto enqueue = [&] { return ncclRecv(data, bytes, ncclInt8, peer, comm_, stream_.get()); };
  return start("recv", count, dtype, site, enqueue, peer);
}

void NcclComm::barrier(std::string_view site) {
  const WorkPtr work = all_reduce(barrier_flag_.get(), 1, DType::I32, ReduceOp::Sum, site);
  while (!work->poll()) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

// Symmetric windows under the zero-CTA policy: copy-engine collectives of NCCL 2.28.
std::shared_ptr<void> NcclComm::allocate(int64_t size_bytes) {
  watchdog_->check();
  constexpr int64_t kAlign = NCCL_WIN_REQUIRED_ALIGNMENT;
  const auto bytes = static_cast<size_t>((std::max<int64_t>(size_bytes, 1) + kAlign - 1) / kAlign * kAlign);
  const auto window = std::make_shared<Window>(*this);
  HEARTH_CHECK(ncclMemAlloc(&window->memory, bytes) == ncclSuccess, Cuda,
               "out of memory: no {} bytes on the device for what group {} gathers", bytes, options_.group);
  set_up("window", fmt::format("registration of {} bytes with NCCL group {}", bytes, options_.group), [&] {
    check_nccl(ncclCommWindowRegister(comm_, window->memory, bytes, &window->handle, NCCL_WIN_COLL_SYMMETRIC),
               "ncclCommWindowRegister", comm_);
  });
  if (window->handle == nullptr) return nullptr;  // on all ranks: it depends on how they are connected
  return {window, window->memory};
}

int place_of(int rank, const std::vector<int>& ranks, std::string_view group) {
  const auto me = std::find(ranks.begin(), ranks.end(), rank);
  HEARTH_REQUIRE(me != ranks.end(), "group {}: rank {} is not among its {} ranks", group, rank, ranks.size());
  return static_cast<int>(me - ranks.begin());
}

}  // namespace

std::unique_ptr<Comm> make_nccl_comm(ControlPlane& control, FlightRecorder& recorder, NcclOptions options) {
  const int place = place_of(control.rank(), options.ranks, options.group);
  check_cuda(cudaSetDevice(options.device), fmt::format("cudaSetDevice({})", options.device));
  const ncclUniqueId id = share_nccl_id(control, options.ranks, options.group);
  if (options.ranks.size() == 1) {
    return make_single_comm(
        options.group, [](void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
          check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes), cudaMemcpyDefault,
                                     static_cast<cudaStream_t>(stream)),
                     "cudaMemcpyAsync");
        });
  }
  for (int& rank : options.ranks) rank = control.job_rank(rank);  // as messages name them
  return std::make_unique<NcclComm>(recorder, std::move(options), place, id);
}

std::string nccl_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion", nullptr);
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace hearth
