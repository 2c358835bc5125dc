#include "trainer/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>

#include <array>

#include "base/error.h"

#ifdef HEARTH_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#endif

namespace hearth {

DeviceChoice parse_device_choice(const std::string& text) {
  if (text == "auto") return DeviceChoice::Auto;
  if (text == "cpu") return DeviceChoice::Cpu;
  if (text == "cuda") return DeviceChoice::Cuda;
  fail(ErrorKind::Usage, "--device takes auto, cpu or cuda, got '{}'", text);
}

int64_t num_cuda_devices() {
#ifdef HEARTH_CUDA
  return c10::cuda::device_count();  // 0, not an error, without a driver
#else
  return 0;
#endif
}

at::Device select_device(DeviceChoice choice, int local_rank) {
  const int64_t devices = num_cuda_devices();
  HEARTH_CHECK(choice != DeviceChoice::Cuda || devices > 0, Cuda,
               "--device cuda, but this program sees no CUDA device; `hearth doctor` says why");
  if (choice == DeviceChoice::Cpu || devices == 0) return at::Device(at::kCPU);
  const auto index = static_cast<c10::DeviceIndex>(local_rank % devices);
#ifdef HEARTH_CUDA
  c10::cuda::set_device(index);
  at::cuda::setCurrentCUDAStream(at::cuda::getStreamFromPool(/*isHighPriority=*/false, index));
#endif
  return {at::kCUDA, index};
}

void set_compute_threads(int threads) {
  at::set_num_threads(threads);
}

void set_deterministic(bool on) {
  at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/false);
  at::globalContext().setBenchmarkCuDNN(false);
}

std::function<void()> like_this_thread([[maybe_unused]] at::Device device) {
  const int threads = at::get_num_threads();
#ifdef HEARTH_CUDA
  if (device.is_cuda())
    return [threads, stream = at::cuda::getCurrentCUDAStream(device.index())] {
      at::set_num_threads(threads);
      c10::cuda::set_device(stream.device_index());
      at::cuda::setCurrentCUDAStream(stream);
    };
#endif
  return [threads] { at::set_num_threads(threads); };
}

void synchronize([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) c10::cuda::device_synchronize();
#endif
}

StreamHandle compute_stream([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) return at::cuda::getCurrentCUDAStream(device.index()).stream();
#endif
  return nullptr;
}

std::string device_name([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) return at::cuda::getDeviceProperties(device.index())->name;
#endif
  return "cpu";
}

double peak_flops(at::Device device) {
  const std::string name = device_name(device);
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has("H100 PCIe")) return 756e12;
  if (has("H100") || has("H200") || has("GH200")) return 989e12;  // SXM, dense
  if (has("A100")) return 312e12;
  return 0.0;
}

std::string device_bus_id([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) {
    std::array<char, 32> text{};
    if (cudaDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), device.index()) == cudaSuccess)
      return text.data();
  }
#endif
  return "";
}

int64_t device_allocator_calls([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) {
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return stats.num_device_alloc + stats.num_device_free;
  }
#endif
  return 0;
}

int64_t peak_reserved_memory([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda())
    return c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].peak;
#endif
  return 0;
}

void release_cached_memory([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::emptyCache();
#endif
}

HostAllocator snapshot_allocator([[maybe_unused]] at::Device device) {
#ifdef HEARTH_CUDA
  if (device.is_cuda())
    return {
        [](int64_t bytes) {
          void* memory = nullptr;
          const cudaError_t error = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
          HEARTH_CHECK(error == cudaSuccess, Cuda, "cannot pin {} bytes of host memory for a checkpoint: {}",
                       bytes, cudaGetErrorString(error));
          return memory;
        },
        [](void* memory) { cudaFreeHost(memory); }};
#endif
  return {};
}

void copy_to_host(const at::Tensor& values, void* out) {
  at::Tensor host = at::from_blob(out, values.sizes(), at::TensorOptions(values.scalar_type()));
  host.copy_(values);
}

}  // namespace hearth
