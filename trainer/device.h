// The device a rank computes on, chosen at run time: one CUDA-built program also runs where there is no GPU.
// Thread-safe except where a function sets process-wide state (it says so).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "parallel/comm.h"
#include "trainer/checkpoint/checkpoint_saver.h"

namespace hearth {

enum class DeviceChoice { Auto, Cpu, Cuda };

// "auto", "cpu", "cuda"; throws Error{Usage} otherwise.
DeviceChoice parse_device_choice(const std::string& text);

int64_t num_cuda_devices();  // 0 without a GPU, a driver, or CUDA support in the build

// Auto: CUDA where there is a device. Local rank r gets device r modulo the number of devices. Makes it
// current, with a stream of its own: the default stream can be captured into no graph. Throws Error{Cuda} where CUDA is asked for and there is none.
at::Device select_device(DeviceChoice choice, int local_rank);

// Process-wide: ATen's intra-op threads; deterministic algorithms and full-precision fp32 matrix products.
void set_compute_threads(int threads);
void set_deterministic(bool on);

// To be called on another thread, which then computes like this one: same device, stream and number of
// threads.
std::function<void()> like_this_thread(at::Device device);

void synchronize(at::Device device);
StreamHandle compute_stream(at::Device device);  // null on the CPU
std::string device_name(at::Device device);
// Dense bf16 peak in FLOP/s by the vendor's datasheet; 0 where it is not known (then there is no MFU).
double peak_flops(at::Device device);

std::string device_bus_id(at::Device device);  // as the driver's tools name it; empty on the CPU
// How often LibTorch's allocator has asked the driver for memory, and the most that it held; 0 on the CPU.
int64_t device_allocator_calls(at::Device device);
int64_t peak_reserved_memory(at::Device device);
// Gives what the allocator holds and no tensor uses back to the driver.
void release_cached_memory(at::Device device);

// Pinned host memory for checkpoint snapshots on CUDA; empty (plain memory) on the CPU.
HostAllocator snapshot_allocator(at::Device device);

// Copies a tensor's elements into host memory of the same dtype; returns when they are there.
void copy_to_host(const at::Tensor& values, void* out);

}  // namespace hearth
