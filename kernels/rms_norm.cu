#include "kernels/rms_norm.h"

#include <algorithm>

#include "kernels/column_sum.h"
#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

// A row belongs to kThreadsPerRow threads that keep up to kVecs vectors of it in registers each. Narrow rows
// (head_dim 64 or 128) share a block, wide ones have one of their own.
template <class T, int kThreadsPerRow_, int kVecs_>
struct Tile {
  static constexpr int kThreadsPerRow = kThreadsPerRow_, kVecs = kVecs_;
  static constexpr int kThreads = kThreadsPerRow > 128 ? kThreadsPerRow : 128;
  static constexpr int kRows = kThreads / kThreadsPerRow;
  static constexpr int kElements = kVecElements<T>;
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  static_assert((kThreadsPerRow & (kThreadsPerRow - 1)) == 0, "shuffles pair lanes by xor");
};

constexpr int64_t kMaxPartials =
    512;  // blocks of the backward: about 4 per SM of an H100; fixed, so bits repeat
constexpr int kGenericThreads = 256;

// Sum over the threads of one row; every one of them returns it.
template <class Tile>
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  if constexpr (Tile::kThreadsPerRow <= kWarp) {
    return lanes_sum<Tile::kThreadsPerRow>(value);
  } else {
    return block_sum<Tile::kThreadsPerRow>(value, scratch);
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) rms_norm_forward_kernel(const RmsNormForwardArgs a) {
  using V = Vec<T, Tile::kElements>;
  __shared__ float scratch[Tile::kThreads / kWarp];
  const int lane = threadIdx.x % Tile::kThreadsPerRow;
  const int64_t row = int64_t{blockIdx.x} * Tile::kRows + threadIdx.x / Tile::kThreadsPerRow;
  const bool active = row < a.rows;  // idle threads stay for the reductions
  const T* x = static_cast<const T*>(a.x) + (active ? a.x_rows.offset(row) : 0);
  V kept[Tile::kVecs];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < Tile::kVecs; ++v) {
    const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
    if (active && c < a.cols) kept[v] = load<T, Tile::kElements>(x + c);
  }
#pragma unroll
  for (int v = 0; v < Tile::kVecs; ++v) {
    const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
    if (!active || c >= a.cols) continue;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) sum += to_float(kept[v].at[i]) * to_float(kept[v].at[i]);
  }
  sum = row_sum<Tile>(sum, scratch);
  if (!active) return;
  const float rstd = rsqrtf(sum / static_cast<float>(a.cols) + a.eps);
  if (lane == 0) a.rstd[row] = rstd;
  T* y = static_cast<T*>(a.y) + row * a.cols;
#pragma unroll
  for (int v = 0; v < Tile::kVecs; ++v) {
    const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
    if (c >= a.cols) continue;
    const V w = load<T, Tile::kElements>(static_cast<const T*>(a.w) + c);
    V out;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i)
      out.at[i] = from_float<T>(to_float(kept[v].at[i]) * rstd * to_float(w.at[i]));
    store(y + c, out);
  }
}

template <class T>
__global__ void __launch_bounds__(kGenericThreads)
    rms_norm_forward_generic_kernel(const RmsNormForwardArgs a) {
  __shared__ float scratch[kGenericThreads / kWarp];
  const int64_t row = blockIdx.x;
  const T *x = static_cast<const T*>(a.x) + a.x_rows.offset(row), *w = static_cast<const T*>(a.w);
  float sum = 0.0f;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads) sum += to_float(x[c]) * to_float(x[c]);
  const float rstd = rsqrtf(block_sum<kGenericThreads>(sum, scratch) / static_cast<float>(a.cols) + a.eps);
  if (threadIdx.x == 0) a.rstd[row] = rstd;
  T* y = static_cast<T*>(a.y) + row * a.cols;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads)
    y[c] = from_float<T>(to_float(x[c]) * rstd * to_float(w[c]));
}

// Adds the row groups' weight gradients of one block in order, and writes one row of partial sums per block.
template <class Tile>
__device__ __forceinline__ void store_partial(const float (&acc)[Tile::kVecs][Tile::kElements],
                                              float* partial, int64_t cols) {
  const int lane = threadIdx.x % Tile::kThreadsPerRow;
  if constexpr (Tile::kRows == 1) {
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (c >= cols) continue;
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i) partial[c + i] = acc[v][i];
    }
  } else {
    __shared__ float groups[Tile::kRows][Tile::kThreadsPerRow * Tile::kVecs * Tile::kElements];
    float* group = groups[threadIdx.x / Tile::kThreadsPerRow];
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v)
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i)
        group[(v * Tile::kThreadsPerRow + lane) * Tile::kElements + i] = acc[v][i];
    __syncthreads();  // every group has written before the columns are added
    for (int c = threadIdx.x; c < cols; c += Tile::kThreads) {
      float sum = 0.0f;
      for (int g = 0; g < Tile::kRows; ++g) sum += groups[g][c];
      partial[c] = sum;
    }
  }
}

// Persistent: block b takes row tiles b, b + gridDim.x, ... and keeps its share of dw in registers.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) rms_norm_backward_kernel(const RmsNormBackwardArgs a) {
  using V = Vec<T, Tile::kElements>;
  __shared__ float scratch[Tile::kThreads / kWarp];
  const int lane = threadIdx.x % Tile::kThreadsPerRow;
  const T* w = static_cast<const T*>(a.w);
  float acc[Tile::kVecs][Tile::kElements] = {};
  for (int64_t first = int64_t{blockIdx.x} * Tile::kRows; first < a.rows;
       first += int64_t{gridDim.x} * Tile::kRows) {
    const int64_t row = first + threadIdx.x / Tile::kThreadsPerRow;
    const bool active = row < a.rows;  // idle threads stay for the reductions
    const T* x = static_cast<const T*>(a.x) + (active ? a.x_rows.offset(row) : 0);
    const T* dy = static_cast<const T*>(a.dy) + (active ? a.dy_rows.offset(row) : 0);
    const float rstd = active ? a.rstd[row] : 0.0f;
    V x_kept[Tile::kVecs], dy_kept[Tile::kVecs];
    float dot = 0.0f;
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (!active || c >= a.cols) continue;
      x_kept[v] = load<T, Tile::kElements>(x + c);
      dy_kept[v] = load<T, Tile::kElements>(dy + c);
    }
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (!active || c >= a.cols) continue;
      const V weight = load<T, Tile::kElements>(w + c);
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i) {
        const float dy_i = to_float(dy_kept[v].at[i]), x_i = to_float(x_kept[v].at[i]);
        dot += dy_i * to_float(weight.at[i]) * x_i;
        acc[v][i] += dy_i * (x_i * rstd);
      }
    }
    dot = row_sum<Tile>(dot, scratch);
    if (!active) continue;
    const float coefficient = dot / static_cast<float>(a.cols) * rstd * rstd;
    T* dx = static_cast<T*>(a.dx) + row * a.cols;
    const T* residual =
        a.residual ? static_cast<const T*>(a.residual) + a.residual_rows.offset(row) : nullptr;
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (c >= a.cols) continue;
      const V weight = load<T, Tile::kElements>(w + c);
      V extra, out;
      if (residual) extra = load<T, Tile::kElements>(residual + c);
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i) {
        float value = rstd * (to_float(dy_kept[v].at[i]) * to_float(weight.at[i]) -
                              to_float(x_kept[v].at[i]) * coefficient);
        if (residual) value += to_float(extra.at[i]);
        out.at[i] = from_float<T>(value);
      }
      store(dx + c, out);
    }
  }
  if (a.dw_accum) store_partial<Tile>(acc, a.workspace + blockIdx.x * a.cols, a.cols);
}

template <class T>
__global__ void __launch_bounds__(kGenericThreads)
    rms_norm_backward_generic_kernel(const RmsNormBackwardArgs a) {
  __shared__ float scratch[kGenericThreads / kWarp];
  const int64_t row = blockIdx.x;
  const T *x = static_cast<const T*>(a.x) + a.x_rows.offset(row), *w = static_cast<const T*>(a.w);
  const T* dy = static_cast<const T*>(a.dy) + a.dy_rows.offset(row);
  const T* residual = a.residual ? static_cast<const T*>(a.residual) + a.residual_rows.offset(row) : nullptr;
  float dot = 0.0f;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads)
    dot += to_float(dy[c]) * to_float(w[c]) * to_float(x[c]);
  const float rstd = a.rstd[row];
  const float coefficient =
      block_sum<kGenericThreads>(dot, scratch) / static_cast<float>(a.cols) * rstd * rstd;
  T* dx = static_cast<T*>(a.dx) + row * a.cols;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads) {
    const float value = rstd * (to_float(dy[c]) * to_float(w[c]) - to_float(x[c]) * coefficient);
    dx[c] = from_float<T>(value + (residual ? to_float(residual[c]) : 0.0f));
  }
}

// dw of the generic path: thread c of block (x, y) sums its column over the rows of part y. Runs before dx is
// written, because dx may be dy.
template <class T>
__global__ void __launch_bounds__(kGenericThreads)
    rms_norm_weight_gradient_kernel(const RmsNormBackwardArgs a, int64_t rows_per_partial) {
  const int64_t c = int64_t{blockIdx.x} * kGenericThreads + threadIdx.x;
  if (c >= a.cols) return;
  const int64_t begin = int64_t{blockIdx.y} * rows_per_partial, end = min(begin + rows_per_partial, a.rows);
  const T *x = static_cast<const T*>(a.x), *dy = static_cast<const T*>(a.dy);
  float sum = 0.0f;
  for (int64_t r = begin; r < end; ++r)
    sum += to_float(dy[a.dy_rows.offset(r) + c]) * (to_float(x[a.x_rows.offset(r) + c]) * a.rstd[r]);
  a.workspace[blockIdx.y * a.cols + c] = sum;
}

// Calls body with the narrowest tile that holds `cols`; false where none does.
template <class T, class Body>
bool with_tile(int64_t cols, Body&& body) {
  constexpr int64_t kE = kVecElements<T>;
  if (cols <= 8 * kE) return body.template operator()<Tile<T, 8, 1>>(), true;
  if (cols <= 16 * kE) return body.template operator()<Tile<T, 16, 1>>(), true;
  if (cols <= 32 * kE) return body.template operator()<Tile<T, 32, 1>>(), true;
  if (cols <= 64 * kE) return body.template operator()<Tile<T, 32, 2>>(), true;
  if (cols <= 96 * kE) return body.template operator()<Tile<T, 32, 3>>(), true;
  // One vector a thread: the backward then needs few registers, and enough warps fit to hide the loads.
  if (cols <= 128 * kE) return body.template operator()<Tile<T, 128, 1>>(), true;
  if (cols <= 256 * kE) return body.template operator()<Tile<T, 256, 1>>(), true;
  if (cols <= 512 * kE) return body.template operator()<Tile<T, 512, 1>>(), true;
  if (cols <= 1024 * kE) return body.template operator()<Tile<T, 1024, 1>>(), true;
  if constexpr (sizeof(T) == 4)  // 8192 elements in either dtype
    if (cols <= 2048 * kE) return body.template operator()<Tile<T, 1024, 2>>(), true;
  return false;
}

template <class T>
bool vectors_fit(const RmsNormForwardArgs& a) {
  constexpr int64_t kE = kVecElements<T>;
  return a.cols % kE == 0 && a.x_rows.is_multiple_of(kE) && is_aligned_16(a.x) && is_aligned_16(a.w) &&
         is_aligned_16(a.y);
}

template <class T>
bool vectors_fit(const RmsNormBackwardArgs& a) {
  constexpr int64_t kE = kVecElements<T>;
  return a.cols % kE == 0 && a.x_rows.is_multiple_of(kE) && a.dy_rows.is_multiple_of(kE) &&
         (!a.residual || a.residual_rows.is_multiple_of(kE)) && is_aligned_16(a.x) && is_aligned_16(a.dy) &&
         is_aligned_16(a.w) && is_aligned_16(a.dx) && is_aligned_16(a.residual);
}

template <class T>
void backward_generic(const RmsNormBackwardArgs& a, cudaStream_t stream) {
  if (a.dw_accum) {
    const int64_t partials = std::min(kMaxPartials, a.rows),
                  rows_per_partial = (a.rows + partials - 1) / partials;
    const dim3 grid(grid_size("rms_norm", (a.cols + kGenericThreads - 1) / kGenericThreads),
                    static_cast<unsigned>(partials));
    rms_norm_weight_gradient_kernel<T><<<grid, kGenericThreads, 0, stream>>>(a, rows_per_partial);
    HEARTH_CUDA_CHECK(cudaGetLastError());
    add_partial_rows({a.workspace, a.dw_accum, partials, a.cols, a.dw_dtype}, stream);
  }
  rms_norm_backward_generic_kernel<T><<<grid_size("rms_norm", a.rows), kGenericThreads, 0, stream>>>(a);
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void rms_norm_forward(const RmsNormForwardArgs& args, cudaStream_t stream) {
  require_launch(args.cols > 0, "rms_norm_forward", "cols must be > 0", args.cols);
  if (args.rows == 0) return;
  dispatch_activation("rms_norm_forward", args.dtype, [&]<class T>() {
    const bool done = vectors_fit<T>(args) && with_tile<T>(args.cols, [&]<class Tile>() {
                        const auto grid = grid_size("rms_norm", (args.rows + Tile::kRows - 1) / Tile::kRows);
                        rms_norm_forward_kernel<T, Tile><<<grid, Tile::kThreads, 0, stream>>>(args);
                      });
    if (!done)
      rms_norm_forward_generic_kernel<T>
          <<<grid_size("rms_norm", args.rows), kGenericThreads, 0, stream>>>(args);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

int64_t rms_norm_backward_workspace_floats(int64_t rows, int64_t cols) {
  return std::min(kMaxPartials, rows) * cols;
}

void rms_norm_backward(const RmsNormBackwardArgs& args, cudaStream_t stream) {
  require_launch(args.cols > 0, "rms_norm_backward", "cols must be > 0", args.cols);
  if (args.rows == 0) return;
  dispatch_activation("rms_norm_backward", args.dtype, [&]<class T>() {
    const bool done =
        vectors_fit<T>(args) && with_tile<T>(args.cols, [&]<class Tile>() {
          const int64_t blocks = std::min(kMaxPartials, (args.rows + Tile::kRows - 1) / Tile::kRows);
          rms_norm_backward_kernel<T, Tile>
              <<<grid_size("rms_norm", blocks), Tile::kThreads, 0, stream>>>(args);
          HEARTH_CUDA_CHECK(cudaGetLastError());
          if (args.dw_accum)
            add_partial_rows({args.workspace, args.dw_accum, blocks, args.cols, args.dw_dtype}, stream);
        });
    if (!done) backward_generic<T>(args, stream);
  });
}

}  // namespace hearth::kernels
