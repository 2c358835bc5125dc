#include "parallel/device_info.h"

#include <fmt/core.h>

#include "parallel/mpi_session.h"
#if HEARTH_NCCL
#include <cuda_runtime_api.h>

#include "parallel/nccl_comm.h"
#endif

namespace hearth {

#if HEARTH_NCCL
namespace {
std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

CudaDevice describe(int index) {
  CudaDevice device{.index = index};
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) return device;
  device.name = properties.name;
  device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.num_multiprocessors = properties.multiProcessorCount;
  char id[32] = {};
  if (cudaDeviceGetPCIBusId(id, sizeof(id), index) == cudaSuccess) device.pci_bus_id = id;
  return device;
}
}  // namespace

CudaDevices cuda_devices() {
  CudaDevices out;
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();  // clears it: this was a question, not a failure
    out.why_none = fmt::format("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
    return out;
  }
  for (int i = 0; i < count; ++i) out.devices.push_back(describe(i));
  if (out.devices.empty()) out.why_none = "no CUDA device is visible";
  return out;
}

ParallelVersions parallel_versions() {
  ParallelVersions out{
      .mpi = mpi_library_version(), .nccl = nccl_version(), .cuda_runtime = {}, .cuda_driver = {}};
  int version = 0;
  if (cudaRuntimeGetVersion(&version) == cudaSuccess) out.cuda_runtime = version_text(version);
  if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) out.cuda_driver = version_text(version);
  return out;
}
#else
CudaDevices cuda_devices() {
  return {.devices = {}, .why_none = "built without CUDA"};
}

ParallelVersions parallel_versions() {
  return {.mpi = mpi_library_version(), .nccl = {}, .cuda_runtime = {}, .cuda_driver = {}};
}
#endif

}  // namespace hearth
