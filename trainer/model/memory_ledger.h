// How much device memory a rank's training state takes, and when most: weights, gradients and optimizer state
// as their owners report them, activations as what else tensors hold. Between two reports the first three are
// constant, so the allocator's own peak gives the activations' peak exactly. The allocator's statistics are
// process-wide (ATen keeps them so): one ledger a process gives meaningful activations. On the CPU nothing
// counts until count_cpu_memory(). Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace hearth {

// Bytes that tensors hold on a device; `peak` since the last reset_peak_device_memory().
struct DeviceMemory {
  int64_t current = 0, peak = 0;
};
DeviceMemory device_memory(at::Device device);
void reset_peak_device_memory(at::Device device);

// From now on CPU tensors are counted too: 64 bytes and two atomic additions an allocation. Process-wide, for
// good.
void count_cpu_memory();

enum class MemoryPart { Weights, Gradients, Optimizer };

struct MemoryUse {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;  // bytes
};

class MemoryLedger {
 public:
  explicit MemoryLedger(at::Device device);
  void allocating(MemoryPart part, int64_t bytes) { change(part, bytes); }  // call before the allocation
  void released(MemoryPart part, int64_t bytes) { change(part, -bytes); }   // call after the memory is gone
  // Of what was reported, bytes that the device's allocator does not know of (negative: no more).
  void outside_allocator(int64_t bytes);
  // Memory that was taken from the device beside the allocator, in use or kept for later. Never less.
  void made_outside_allocator(int64_t bytes) { made_outside_ += bytes; }
  int64_t made_outside_allocator() const { return made_outside_; }
  int64_t held(MemoryPart part) const { return current_[static_cast<size_t>(part)]; }
  // Forgets all peaks: they start at what is held now.
  void begin();
  // Each since begin(); they need not have come at one time.
  MemoryUse peak();
  // Most that tensors held at once, all together, since this was made.
  int64_t peak_total();

 private:
  void change(MemoryPart part, int64_t bytes);
  void settle();
  int64_t known() const { return current_[0] + current_[1] + current_[2]; }

  at::Device device_;
  std::array<int64_t, 3> current_{}, peak_{};
  int64_t outside_ = 0, made_outside_ = 0, peak_activations_ = 0, peak_total_ = 0;
};

}  // namespace hearth
