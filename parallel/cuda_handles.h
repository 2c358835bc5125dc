// RAII for the few CUDA runtime handles that parallel/ needs, and error codes as Error{Cuda}. Built with
// HEARTH_CUDA only.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace hearth {

inline void check_cuda(cudaError_t code, std::string_view call) {
  HEARTH_CHECK(code == cudaSuccess, Cuda, "{} failed: {}: {}", call, cudaGetErrorName(code),
               cudaGetErrorString(code));
}

// Destroyers ignore errors: a destructor cannot report, and a broken context fails every call anyway.
struct CudaStreamDestroyer {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct CudaEventDestroyer {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct CudaMemoryFreer {
  void operator()(void* memory) const { cudaFree(memory); }
};
using CudaStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, CudaStreamDestroyer>;
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, CudaEventDestroyer>;
using CudaMemory = std::unique_ptr<void, CudaMemoryFreer>;

// Highest priority of the device, and not tied to the legacy default stream.
CudaStream make_high_priority_stream();
CudaEvent make_event();  // without timing: cheaper to record
CudaEvent make_timing_event();
CudaMemory allocate_cuda(int64_t size_bytes);

}  // namespace hearth
