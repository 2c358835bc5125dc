#include "kernels/dropout.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kMaxThreads = 256;

// Block x = row, block y = part of the row: a thread has one vector. With kVec > 1 the first column is a
// multiple of kDropoutLanes, so that a draw is used whole.
template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) dropout_kernel(const DropoutArgs a) {
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (c >= a.cols) return;
  const int64_t at = int64_t{blockIdx.x} * a.cols + c, key = a.keys[blockIdx.x];
  const float scale = dropout_scale(a.mask);
  T* y = static_cast<T*>(a.y) + at;
  const auto x = load<T, kVec>(static_cast<const T*>(a.x) + at);
  Vec<T, kVec> out;
  if (a.accumulate) out = load<T, kVec>(y);
  uint64_t bits = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const int64_t column = a.mask.first_column + c + i;
    if (i % kDropoutLanes == 0) bits = dropout_draw(a.mask, key, column / kDropoutLanes);
    const float value = is_dropped(a.mask, bits, column) ? 0.0f : to_float(x.at[i]) * scale;
    out.at[i] = from_float<T>(a.accumulate ? to_float(out.at[i]) + value : value);
  }
  store(y, out);
}

template <class T, int kVec>
void launch(const DropoutArgs& args, cudaStream_t stream) {
  const int64_t vectors = (args.cols + kVec - 1) / kVec;
  const int64_t threads = std::min<int64_t>((vectors + kWarp - 1) / kWarp * kWarp, kMaxThreads);
  const int64_t parts = (vectors + threads - 1) / threads;
  require_launch(parts <= 65535, "dropout", "a row may take 65535 blocks", parts);
  dropout_kernel<T, kVec><<<dim3(grid_size("dropout", args.rows), static_cast<unsigned>(parts)),
                            static_cast<unsigned>(threads), 0, stream>>>(args);
}

}  // namespace

void dropout(const DropoutArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return;
  dispatch_activation("dropout", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    static_assert(kVec % kDropoutLanes == 0);
    if (args.cols % kVec == 0 && args.mask.first_column % kDropoutLanes == 0 && is_aligned_16(args.x) &&
        is_aligned_16(args.y)) {
      launch<T, kVec>(args, stream);
    } else {
      launch<T, 1>(args, stream);
    }
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
