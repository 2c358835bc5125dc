// Versions and devices, for `doctor` and the start-up log. Usable in every build: without CUDA the lists are
// empty, and `why_none` says why. Never throws for a missing driver or device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hearth {

struct CudaDevice {
  int index = 0;
  std::string name;
  int64_t memory_bytes = 0;
  int compute_major = 0, compute_minor = 0;
  int num_multiprocessors = 0;
  std::string pci_bus_id;
};

struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string why_none;  // "built without CUDA", "no driver: ..."; empty when there are devices
};
CudaDevices cuda_devices();

struct ParallelVersions {
  std::string mpi;                          // library, one line
  std::optional<std::string> nccl;          // nullopt: built without CUDA
  std::optional<std::string> cuda_runtime;  // "13.0"
  std::optional<std::string> cuda_driver;   // highest CUDA version the driver speaks; nullopt: no driver
};
ParallelVersions parallel_versions();

}  // namespace hearth
