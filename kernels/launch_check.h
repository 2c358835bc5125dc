// Checks for launchers (.cu files), whose messages are made in launch_check.cpp: nvcc's front end cannot
// compile the format strings of fmt 9, so .cu files include neither fmt nor base/error.h. Needs no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace hearth::kernels {

// Throws Error{Cuda} with the call and CUDA's own words.
[[noreturn]] void fail_cuda(const char* call, cudaError_t error);
// Throws Error{Usage} "<op>: <rule>, got <value>" unless `condition`.
void require_launch(bool condition, const char* op, const char* rule, int64_t value);
[[noreturn]] void fail_dtype(const char* op, DType dtype);
// A grid dimension; throws Error{Usage} where `blocks` is more than CUDA's limit of 2^31 - 1 blocks in x.
unsigned grid_size(const char* op, int64_t blocks);

}  // namespace hearth::kernels

// After a launch pass cudaGetLastError(): it reports launch errors only; execution errors surface at the next
// synchronisation.
#define HEARTH_CUDA_CHECK(call)                                                                   \
  do {                                                                                            \
    const cudaError_t hearth_cuda_error = (call);                                                 \
    if (hearth_cuda_error != cudaSuccess) ::hearth::kernels::fail_cuda(#call, hearth_cuda_error); \
  } while (false)
