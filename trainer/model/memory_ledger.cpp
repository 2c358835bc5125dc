#include "trainer/model/memory_ledger.h"

#include <ATen/Context.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#ifdef HEARTH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace hearth {
namespace {

// Counts what CPU tensors hold. The size stands in front of each block, at a distance that keeps ATen's
// alignment. ATen's allocator is process-wide, so this one and its counters are too.
class CountingAllocator final : public at::Allocator {
 public:
  static CountingAllocator& instance() {
    static CountingAllocator allocator;
    return allocator;
  }
  at::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, at::Device(at::kCPU)};
    auto* block = static_cast<char*>(c10::GetDefaultCPUAllocator()->raw_allocate(bytes + kHeader));
    *reinterpret_cast<int64_t*>(block) = static_cast<int64_t>(bytes);
    add(static_cast<int64_t>(bytes));
    void* data = block + kHeader;
    return {data, data, &release, at::Device(at::kCPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
  DeviceMemory memory() const { return {current_.load(), peak_.load()}; }
  void reset_peak() { peak_.store(current_.load()); }

 private:
  static constexpr size_t kHeader = c10::gAlignment;
  static void release(void* data) {
    char* block = static_cast<char*>(data) - kHeader;
    instance().current_ -= *reinterpret_cast<int64_t*>(block);
    c10::GetDefaultCPUAllocator()->raw_deallocate(block);
  }
  void add(int64_t bytes) {
    const int64_t now = current_ += bytes;
    int64_t peak = peak_.load();
    while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
    }
  }

  std::atomic<int64_t> current_{0}, peak_{0};
};

}  // namespace

DeviceMemory device_memory([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0];
    return {stats.current, stats.peak};
  }
#endif
  return CountingAllocator::instance().memory();
}

void reset_peak_device_memory([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) return c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
#endif
  CountingAllocator::instance().reset_peak();
}

void count_cpu_memory() {
  c10::SetCPUAllocator(&CountingAllocator::instance());
}

MemoryLedger::MemoryLedger(at::Device device) : device_(device) {
  if (device.is_cuda()) at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);  // its statistics need it
}

// Takes in what the allocator saw since the last report.
void MemoryLedger::settle() {
  const int64_t peak = device_memory(device_).peak + outside_;
  peak_total_ = std::max(peak_total_, peak);
  peak_activations_ = std::max(peak_activations_, peak - known());
}

void MemoryLedger::change(MemoryPart part, int64_t bytes) {
  settle();
  const auto i = static_cast<size_t>(part);
  current_[i] += bytes;
  peak_[i] = std::max(peak_[i], current_[i]);
  reset_peak_device_memory(device_);
}

void MemoryLedger::outside_allocator(int64_t bytes) {
  settle();
  outside_ += bytes;
}

void MemoryLedger::begin() {
  settle();
  peak_ = current_;
  reset_peak_device_memory(device_);
  peak_activations_ = 0;
}

MemoryUse MemoryLedger::peak() {
  settle();
  return {
      .weights = peak_[0], .gradients = peak_[1], .optimizer = peak_[2], .activations = peak_activations_};
}

int64_t MemoryLedger::peak_total() {
  settle();
  return peak_total_;
}

}  // namespace hearth
