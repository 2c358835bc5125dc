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

constexpr int kGenericThreads = 256;
constexpr int64_t kMaxFastRows = int64_t{1} << 30;  // row numbers of the backward are 32-bit, sums of two fit

// Sum over the threads of one row; every one of them returns it.
template <class Tile>
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  if constexpr (Tile::kThreadsPerRow <= kWarp) {
    return lanes_sum<Tile::kThreadsPerRow>(value);
  } else {
    return block_sum<Tile::kThreadsPerRow>(value, scratch);
  }
}

template <class T, class Tile, bool kResidual>
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
  if constexpr (kResidual) {
    const T* residual = static_cast<const T*>(a.residual) + (active ? a.residual_rows.offset(row) : 0);
    T* total = static_cast<T*>(a.sum) + row * a.cols;
    V extra[Tile::kVecs];
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (active && c < a.cols) extra[v] = load<T, Tile::kElements>(residual + c);
    }
#pragma unroll
    for (int v = 0; v < Tile::kVecs; ++v) {
      const int c = (v * Tile::kThreadsPerRow + lane) * Tile::kElements;
      if (!active || c >= a.cols) continue;
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i)
        kept[v].at[i] = from_float<T>(to_float(kept[v].at[i]) + to_float(extra[v].at[i]));
      store(total + c, kept[v]);
    }
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
  if (a.residual) {
    const T* residual = static_cast<const T*>(a.residual) + a.residual_rows.offset(row);
    T* total = static_cast<T*>(a.sum) + row * a.cols;
    for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads)
      total[c] = from_float<T>(to_float(x[c]) + to_float(residual[c]));
    x = total;  // below, each thread reads again what it wrote itself
  }
  float sum = 0.0f;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads) sum += to_float(x[c]) * to_float(x[c]);
  const float rstd = rsqrtf(block_sum<kGenericThreads>(sum, scratch) / static_cast<float>(a.cols) + a.eps);
  if (threadIdx.x == 0) a.rstd[row] = rstd;
  T* y = static_cast<T*>(a.y) + row * a.cols;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads)
    y[c] = from_float<T>(to_float(x[c]) * rstd * to_float(w[c]));
}

// The backward's blocks stay for the whole launch. A row belongs to a group of threads with kVecs vectors of
// it each: kLanes of a warp for narrow rows (heads), or as many whole warps as the row needs. A thread has
// its columns' weights and sums of weight gradients in registers, and the rows to come in a ring in shared
// memory, where each thread copies and reads its own 16 bytes: the loads of the next rows are in flight while
// this one is reduced and stored, and no barrier waits for them.
constexpr int kWholeWarps = 0;  // kLanes of the wide groups, whose size is an argument
constexpr int kSharedThreads = 512, kMaxThreads = 1024;  // of a block of several groups, and of one group
constexpr int64_t kSms =
    132;  // of an H100 or H200; fixed, so that the bits of dw do not depend on the device
constexpr int64_t kMaxPartials = 2 * kSms;  // 1024 threads an SM, of at most 64 registers
template <int kVecs>
constexpr int kStages = kVecs == 1 ? 3 : 2;  // two rows to come: up to 96 KB in flight on an SM

template <int kLanes>
struct RowGroup {
  int lanes, lane, index, count;  // threads of a group and this one's place; this group of the block's
  __device__ explicit RowGroup(int wide_lanes)
      : lanes(kLanes == kWholeWarps ? wide_lanes : kLanes),
        lane(static_cast<int>(threadIdx.x) % lanes),
        index(static_cast<int>(threadIdx.x) / lanes),
        count(static_cast<int>(blockDim.x) / lanes) {}

  // Every thread of the group returns the sum, in a fixed order. Consecutive calls take different `scratch`
  // (one float a warp of the block): a call's barrier is what frees the scratch of the call before.
  __device__ float sum(float value, float* scratch) const {
    if constexpr (kLanes != kWholeWarps) return lanes_sum<kLanes>(value);
    value = lanes_sum<kWarp>(value);
    const int warps = lanes / kWarp, warp_lane = static_cast<int>(threadIdx.x) % kWarp;
    if (warp_lane == 0) scratch[threadIdx.x / kWarp] = value;
    // The group's warps have written before any of them reads; other groups are not waited for.
    asm volatile("bar.sync %0, %1;" ::"r"(index + 1), "r"(lanes) : "memory");
    return lanes_sum<kWarp>(warp_lane < warps ? scratch[index * warps + warp_lane] : 0.0f);
  }
};

// RowLayout::offset with a division of 32 bits, and with none where rows are no heads.
__device__ __forceinline__ int64_t row_offset(const RowLayout& layout, int row) {
  if (layout.inner == 1) return row * layout.outer_stride;
  const int inner = static_cast<int>(layout.inner), outer = row / inner;
  return outer * layout.outer_stride + (row - outer * inner) * layout.inner_stride;
}

// Adds the groups' weight gradients of one block in order, and writes them as one row of partial sums.
template <int kLanes, int kVecs, int kElements>
__device__ __forceinline__ void store_partial(const RowGroup<kLanes>& group,
                                              const float (&acc)[kVecs][kElements], float* partial,
                                              int cols) {
  __shared__ float groups[kSharedThreads * kVecs * kElements];
  const int width = group.lanes * kVecs * kElements;
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    const int c = (v * group.lanes + group.lane) * kElements;
    if (group.count == 1 && c >= cols) continue;
    float* to = group.count == 1 ? partial + c : groups + group.index * width + c;
#pragma unroll
    for (int i = 0; i < kElements; i += 4)
      store(to + i, Vec<float, 4>{acc[v][i], acc[v][i + 1], acc[v][i + 2], acc[v][i + 3]});
  }
  if (group.count == 1) return;
  __syncthreads();  // every group has written before the columns are added
  for (int c = static_cast<int>(threadIdx.x); c < cols; c += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int g = 0; g < group.count; ++g) sum += groups[g * width + c];
    partial[c] = sum;
  }
}

// Dynamic shared memory: the ring [kStages][2 or, with a residual, 3][kVecs][threads] of 16 bytes.
template <class T, int kLanes, int kVecs>
__global__ void __launch_bounds__(kMaxThreads, 1)
    rms_norm_backward_kernel(const RmsNormBackwardArgs a, int wide_lanes) {
  constexpr int kElements = kVecElements<T>, kRing = kStages<kVecs>;
  extern __shared__ Words ring[];
  __shared__ float scratch[2][kMaxThreads / kWarp];
  const RowGroup<kLanes> group(wide_lanes);
  const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);
  const int step = static_cast<int>(gridDim.x) * group.count, tensors = a.residual ? 3 : 2;
  const auto column = [&](int v) { return (v * group.lanes + group.lane) * kElements; };
  const auto slot = [&](int stage, int tensor, int v) -> Words& {
    return ring[((stage * tensors + tensor) * kVecs + v) * blockDim.x + threadIdx.x];
  };
  // Zeros where the row or its columns end.
  const auto fetch = [&](int row, int stage) {
    const auto copy = [&](const void* from, const RowLayout& layout, int tensor) {
      const T* source = static_cast<const T*>(from) + row_offset(layout, row);
#pragma unroll
      for (int v = 0; v < kVecs; ++v)
        copy_async(&slot(stage, tensor, v), source + column(v), row < rows && column(v) < cols);
    };
    copy(a.x, a.x_rows, 0);
    copy(a.dy, a.dy_rows, 1);
    if (a.residual) copy(a.residual, a.residual_rows, 2);
    copy_async_commit();
  };

  int first = static_cast<int>(blockIdx.x) * group.count, stage = 0, parity = 0;
  for (int ahead = 0; ahead + 1 < kRing; ++ahead) fetch(first + group.index + ahead * step, ahead);
  float next_rstd = first + group.index < rows ? a.rstd[first + group.index] : 0.0f;
  Words w[kVecs] = {};
  float acc[kVecs][kElements] = {};
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    if (column(v) < cols) w[v] = *reinterpret_cast<const Words*>(static_cast<const T*>(a.w) + column(v));
  const float per_col = 1.0f / static_cast<float>(cols);
  // Whole blocks go round, so that the groups that share a warp shuffle together.
  for (; first < rows; first += step, parity ^= 1, stage = stage + 1 < kRing ? stage + 1 : 0) {
    const int row = first + group.index;
    // Into the slots that the row before this one had.
    fetch(row + (kRing - 1) * step, stage > 0 ? stage - 1 : kRing - 1);
    const float rstd = next_rstd;
    next_rstd = row + step < rows ? a.rstd[row + step] : 0.0f;
    copy_async_wait<kRing - 1>();  // this row's copies are done, the later rows' may not be
    float dot = 0.0f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const Words x = slot(stage, 0, v), dy = slot(stage, 1, v);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const float dy_i = element<T>(dy, i), x_i = element<T>(x, i);
        dot += dy_i * element<T>(w[v], i) * x_i;
        acc[v][i] += dy_i * (x_i * rstd);
      }
    }
    dot = group.sum(dot, scratch[parity]);
    if (row >= rows) continue;
    const float coefficient = dot * per_col * rstd * rstd;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (column(v) >= cols) continue;
      const Words x = slot(stage, 0, v), dy = slot(stage, 1, v);
      const Words residual = a.residual ? slot(stage, 2, v) : Words{};
      Vec<T, kElements> dx, y;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const float x_i = element<T>(x, i), w_i = element<T>(w[v], i);
        const float projected = element<T>(dy, i) * w_i - x_i * coefficient;
        dx.at[i] = from_float<T>(rstd * projected + element<T>(residual, i));
        y.at[i] = from_float<T>(x_i * rstd * w_i);
      }
      store(static_cast<T*>(a.dx) + row * a.cols + column(v), dx);
      if (a.y) store(static_cast<T*>(a.y) + row * a.cols + column(v), y);
    }
  }
  let_next_kernel_come();
  if (a.dw_accum) store_partial(group, acc, a.workspace + blockIdx.x * a.cols, cols);
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
  T *dx = static_cast<T*>(a.dx) + row * a.cols, *y = a.y ? static_cast<T*>(a.y) + row * a.cols : nullptr;
  for (int64_t c = threadIdx.x; c < a.cols; c += kGenericThreads) {
    const float value = rstd * (to_float(dy[c]) * to_float(w[c]) - to_float(x[c]) * coefficient);
    dx[c] = from_float<T>(value + (residual ? to_float(residual[c]) : 0.0f));
    if (y) y[c] = from_float<T>(to_float(x[c]) * rstd * to_float(w[c]));
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

// Calls body with the forward's narrowest tile that holds `cols`; false where none does.
template <class T, class Body>
bool with_tile(int64_t cols, Body&& body) {
  constexpr int64_t kE = kVecElements<T>;
  if (cols <= 8 * kE) return body.template operator()<Tile<T, 8, 1>>(), true;
  if (cols <= 16 * kE) return body.template operator()<Tile<T, 16, 1>>(), true;
  if (cols <= 32 * kE) return body.template operator()<Tile<T, 32, 1>>(), true;
  if (cols <= 64 * kE) return body.template operator()<Tile<T, 32, 2>>(), true;
  if (cols <= 96 * kE) return body.template operator()<Tile<T, 32, 3>>(), true;
  if (cols <= 128 * kE) return body.template operator()<Tile<T, 128, 1>>(), true;
  // Two vectors a thread: what is under way on an SM must cover the reduction's barrier too.
  if (cols <= 256 * kE) return body.template operator()<Tile<T, 128, 2>>(), true;
  if (cols <= 512 * kE) return body.template operator()<Tile<T, 256, 2>>(), true;
  if (cols <= 1024 * kE) return body.template operator()<Tile<T, 512, 2>>(), true;
  if constexpr (sizeof(T) == 4)  // 8192 elements in either dtype
    if (cols <= 2048 * kE) return body.template operator()<Tile<T, 1024, 2>>(), true;
  return false;
}

// Calls body<kLanes, kVecs>(threads of a row) with the backward's groups; false where no group is wide
// enough.
template <class T, class Body>
bool with_groups(const RmsNormBackwardArgs& a, Body&& body) {
  const auto vectors = static_cast<int>(std::min<int64_t>(a.cols / kVecElements<T>, 2 * kMaxThreads + 1));
  const auto whole_warps = [](int threads) { return (threads + kWarp - 1) / kWarp * kWarp; };
  if (vectors <= 8) return body.template operator()<8, 1>(8), true;
  if (vectors <= 16) return body.template operator()<16, 1>(16), true;
  if (vectors <= 32) return body.template operator()<32, 1>(32), true;
  if (vectors <= kMaxThreads) return body.template operator()<kWholeWarps, 1>(whole_warps(vectors)), true;
  if constexpr (sizeof(T) == 4)  // 8192 elements in either dtype
    if (vectors <= 2 * kMaxThreads)
      return body.template operator()<kWholeWarps, 2>(whole_warps((vectors + 1) / 2)), true;
  return false;
}

template <class T>
bool vectors_fit(const RmsNormForwardArgs& a) {
  constexpr int64_t kE = kVecElements<T>;
  return a.cols % kE == 0 && a.x_rows.is_multiple_of(kE) &&
         (!a.residual || a.residual_rows.is_multiple_of(kE)) && is_aligned_16(a.x) && is_aligned_16(a.w) &&
         is_aligned_16(a.y) && is_aligned_16(a.residual) && is_aligned_16(a.sum);
}

template <class T>
bool vectors_fit(const RmsNormBackwardArgs& a) {
  constexpr int64_t kE = kVecElements<T>;
  return a.rows < kMaxFastRows && a.cols % kE == 0 && a.x_rows.is_multiple_of(kE) &&
         a.dy_rows.is_multiple_of(kE) && (!a.residual || a.residual_rows.is_multiple_of(kE)) &&
         is_aligned_16(a.x) && is_aligned_16(a.dy) && is_aligned_16(a.w) && is_aligned_16(a.dx) &&
         is_aligned_16(a.y) && is_aligned_16(a.residual) && is_aligned_16(a.workspace);
}

template <class T, int kLanes, int kVecs>
void backward_groups(const RmsNormBackwardArgs& a, int lanes, cudaStream_t stream) {
  const int groups = std::max(1, kSharedThreads / lanes), threads = groups * lanes;
  // With a residual, rows of 512 threads on an SM keep the memory busy, and more of them get in its way.
  const bool fills = a.residual && a.cols / kVecElements<T> * groups >= kSharedThreads;
  const int64_t most = threads > kSharedThreads || fills ? kSms : kMaxPartials;
  const int64_t blocks = std::min(most, (a.rows + groups - 1) / groups);
  const int ring_bytes = kStages<kVecs> * (a.residual ? 3 : 2) * kVecs * threads * int{sizeof(Words)};
  const auto kernel = rms_norm_backward_kernel<T, kLanes, kVecs>;
  allow_shared_memory(kernel, ring_bytes);
  kernel<<<grid_size("rms_norm", blocks), static_cast<unsigned>(threads), ring_bytes, stream>>>(a, lanes);
  HEARTH_CUDA_CHECK(cudaGetLastError());
  if (a.dw_accum) add_partial_rows({a.workspace, a.dw_accum, blocks, a.cols, a.dw_dtype}, stream);
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
    const bool done =
        vectors_fit<T>(args) && with_tile<T>(args.cols, [&]<class Tile>() {
          const auto grid = grid_size("rms_norm", (args.rows + Tile::kRows - 1) / Tile::kRows);
          args.residual ? rms_norm_forward_kernel<T, Tile, true><<<grid, Tile::kThreads, 0, stream>>>(args)
                        : rms_norm_forward_kernel<T, Tile, false><<<grid, Tile::kThreads, 0, stream>>>(args);
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
    const bool done = vectors_fit<T>(args) && with_groups<T>(args, [&]<int kLanes, int kVecs>(int lanes) {
                        backward_groups<T, kLanes, kVecs>(args, lanes, stream);
                      });
    if (!done) backward_generic<T>(args, stream);
  });
}

}  // namespace hearth::kernels
