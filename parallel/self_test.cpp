#include "parallel/self_test.h"

#include <algorithm>
#include <chrono>
#include <vector>

#if HEARTH_NCCL
#include "parallel/cuda_handles.h"
#endif

namespace hearth {
namespace {

// Host memory, or a device's with copies to and from it.
class Buffer {
 public:
  Buffer(int64_t count, std::optional<int> cuda_device) : host_(static_cast<size_t>(count)) {
#if HEARTH_NCCL
    if (cuda_device) device_ = allocate_cuda(count * static_cast<int64_t>(sizeof(float)));
#else
    (void)cuda_device;  // make_comm has refused it
#endif
  }
#if HEARTH_NCCL
  void* data() {
    return device_ ? device_.get() : host_.data();
  }
  void fill(float value) {
    std::fill(host_.begin(), host_.end(), value);
    if (device_) check_cuda(cudaMemcpy(device_.get(), host_.data(), size(), cudaMemcpyDefault), "cudaMemcpy");
  }
  // Waits for the default stream, which is the compute stream of a Comm until another is set.
  const std::vector<float>& read() {
    if (device_) check_cuda(cudaMemcpy(host_.data(), device_.get(), size(), cudaMemcpyDefault), "cudaMemcpy");
    return host_;
  }

 private:
  size_t size() const {
    return host_.size() * sizeof(float);
  }
  CudaMemory device_;
#else
  void* data() {
    return host_.data();
  }
  void fill(float value) {
    std::fill(host_.begin(), host_.end(), value);
  }
  const std::vector<float>& read() {
    return host_;
  }

 private:
#endif
  std::vector<float> host_;
};

}  // namespace

CollectiveCheck check_collective(Job& job, std::optional<int> cuda_device, int64_t size_bytes) {
  const int64_t count = std::max<int64_t>(1, size_bytes / static_cast<int64_t>(sizeof(float)));
  const auto comm = make_comm(
      job,
      {.group = "check", .ranks = job.control->all_ranks(), .cuda_device = cuda_device, .timeout_s = {}});
  Buffer buffer(count, cuda_device);
  // 1 + 2 + ... + n: exact in fp32 up to n = 5792, and another value when a rank is missing or counted twice.
  const float want = static_cast<float>(comm->size()) * static_cast<float>(comm->size() + 1) / 2;
  CollectiveCheck out{.backend = std::string(comm->backend()),
                      .ranks = comm->size(),
                      .size_bytes = count * static_cast<int64_t>(sizeof(float))};
  for (int round = 0; round < 2; ++round) {
    buffer.fill(static_cast<float>(comm->rank() + 1));
    const auto start = std::chrono::steady_clock::now();
    comm->all_reduce(buffer.data(), count, DType::F32, ReduceOp::Sum, "check.all_reduce")->wait();
    const std::vector<float>& got = buffer.read();
    out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto wrong = std::find_if(got.begin(), got.end(), [&](float x) { return !(x == want); });
    HEARTH_CHECK(wrong == got.end(), Peer, "all_reduce over {} gave {} at element {}, expected {}",
                 out.backend, *wrong, wrong - got.begin(), want);
  }
  return out;
}

}  // namespace hearth
