#include "kernels/swiglu.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kMaxThreads = 256;

// 1 / (1 + exp(-g)). For bf16 the hardware's approximate exponential is far inside the rounding of the store;
// fp32 gets the accurate one.
template <class T>
__device__ __forceinline__ float sigmoid(float g) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-fmaxf(g, -80.0f)));
  return 1.0f / (1.0f + expf(-g));
}

// Block x = row, block y = part of the row: a thread has one vector of each half.
template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) swiglu_forward_kernel(const SwigluForwardArgs a) {
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (c >= a.width) return;
  const T* gate_row = static_cast<const T*>(a.gu) + int64_t{blockIdx.x} * 2 * a.width;
  const auto gate = load<T, kVec>(gate_row + c), up = load<T, kVec>(gate_row + a.width + c);
  Vec<T, kVec> out;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float g = to_float(gate.at[i]);
    out.at[i] = from_float<T>(g * sigmoid<T>(g) * to_float(up.at[i]));
  }
  store(static_cast<T*>(a.h) + int64_t{blockIdx.x} * a.width + c, out);
}

// A thread reads its elements before it writes any, so outputs may lie over inputs.
template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) swiglu_backward_kernel(const SwigluBackwardArgs a) {
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (c >= a.width) return;
  const int64_t row = int64_t{blockIdx.x} * 2 * a.width;
  const auto gate = load<T, kVec>(static_cast<const T*>(a.gu) + row + c);
  const auto up = load<T, kVec>(static_cast<const T*>(a.gu) + row + a.width + c);
  const auto dh = load<T, kVec>(static_cast<const T*>(a.dh) + int64_t{blockIdx.x} * a.width + c);
  Vec<T, kVec> d_gate, d_up, h;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float g = to_float(gate.at[i]), s = sigmoid<T>(g), silu = g * s, d = to_float(dh.at[i]);
    const float u = to_float(up.at[i]);
    d_up.at[i] = from_float<T>(d * silu);
    d_gate.at[i] = from_float<T>(d * u * (s + silu * (1.0f - s)));
    h.at[i] = from_float<T>(silu * u);
  }
  store(static_cast<T*>(a.dgu) + row + c, d_gate);
  store(static_cast<T*>(a.dgu) + row + a.width + c, d_up);
  if (a.h) store(static_cast<T*>(a.h) + int64_t{blockIdx.x} * a.width + c, h);
}

struct Grid {
  dim3 blocks;
  unsigned threads;
};
Grid grid_for(const char* op, int64_t rows, int64_t width, int64_t elements) {
  const int64_t vectors = (width + elements - 1) / elements;
  const int64_t threads = std::min<int64_t>((vectors + kWarp - 1) / kWarp * kWarp, kMaxThreads);
  const int64_t parts = (vectors + threads - 1) / threads;
  require_launch(parts <= 65535, op, "a row may take 65535 blocks", parts);
  return {dim3(grid_size(op, rows), static_cast<unsigned>(parts)), static_cast<unsigned>(threads)};
}

}  // namespace

void swiglu_forward(const SwigluForwardArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.width == 0) return;
  dispatch_activation("swiglu_forward", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned = args.width % kVec == 0 && is_aligned_16(args.gu) && is_aligned_16(args.h);
    const Grid grid = grid_for("swiglu_forward", args.rows, args.width, aligned ? kVec : 1);
    if (aligned) {
      swiglu_forward_kernel<T, kVec><<<grid.blocks, grid.threads, 0, stream>>>(args);
    } else {
      swiglu_forward_kernel<T, 1><<<grid.blocks, grid.threads, 0, stream>>>(args);
    }
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

void swiglu_backward(const SwigluBackwardArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.width == 0) return;
  dispatch_activation("swiglu_backward", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned = args.width % kVec == 0 && is_aligned_16(args.gu) && is_aligned_16(args.dh) &&
                         is_aligned_16(args.dgu) && is_aligned_16(args.h);
    const Grid grid = grid_for("swiglu_backward", args.rows, args.width, aligned ? kVec : 1);
    if (aligned) {
      swiglu_backward_kernel<T, kVec><<<grid.blocks, grid.threads, 0, stream>>>(args);
    } else {
      swiglu_backward_kernel<T, 1><<<grid.blocks, grid.threads, 0, stream>>>(args);
    }
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
