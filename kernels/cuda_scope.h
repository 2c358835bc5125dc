// Makes a tensor's device current and gives LibTorch's current stream there, so that our launches are ordered
// with ATen's. For tensor entries in CUDA builds.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace hearth::kernels {

class CudaScope {
 public:
  explicit CudaScope(const at::Tensor& tensor)
      : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream()) {}
  cudaStream_t stream() const { return stream_; }

 private:
  c10::cuda::CUDAGuard guard_;
  cudaStream_t stream_;
};

}  // namespace hearth::kernels
