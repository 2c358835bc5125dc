#include "kernels/column_sum.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kColumns = 32, kLanesY = 16;  // a warp reads 128 contiguous bytes of a row
constexpr int64_t kMaxPartials = 256;       // about two blocks per SM of an H100 at cols = 32
constexpr int64_t kMinRowsPerPartial = 64;

int64_t num_partials(int64_t rows) {
  return std::clamp<int64_t>((rows + kMinRowsPerPartial - 1) / kMinRowsPerPartial, 1, kMaxPartials);
}

// Sums rows [begin, end) of column c over the block's 8 y lanes. Valid in lane y = 0 only.
template <class T>
__device__ float sum_rows(const T* x, int64_t begin, int64_t end, int64_t cols, int64_t c, bool active) {
  __shared__ float lanes[kLanesY][kColumns];
  float sum = 0.0f;
  if (active) {
#pragma unroll 8  // loads in flight; the additions stay in order
    for (int64_t r = begin + threadIdx.y; r < end; r += kLanesY) sum += to_float(x[r * cols + c]);
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // all lanes have written before lane 0 adds them
  if (threadIdx.y != 0) return 0.0f;
  for (int y = 1; y < kLanesY; ++y) sum += lanes[y][threadIdx.x];
  return sum;
}

template <class Accum>
__global__ void __launch_bounds__(kColumns* kLanesY) add_partial_rows_kernel(const AddPartialRows a) {
  const int64_t c = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  const bool active = c < a.cols;
  const float sum = sum_rows(a.partial, 0, a.num_partials, a.cols, c, active);
  Accum* accum = static_cast<Accum*>(a.accum);
  if (active && threadIdx.y == 0) accum[c] = from_float<Accum>(to_float(accum[c]) + sum);
}

template <class T>
__global__ void __launch_bounds__(kColumns* kLanesY)
    column_sum_kernel(const ColumnSum a, int64_t rows_per_partial) {
  const int64_t c = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  const bool active = c < a.cols;
  const int64_t begin = int64_t{blockIdx.y} * rows_per_partial, end = min(begin + rows_per_partial, a.rows);
  const float sum = sum_rows(static_cast<const T*>(a.x), begin, end, a.cols, c, active);
  if (active && threadIdx.y == 0) a.workspace[blockIdx.y * a.cols + c] = sum;
}

unsigned column_blocks(int64_t cols) {
  return grid_size("column_sum", (cols + kColumns - 1) / kColumns);
}

}  // namespace

void add_partial_rows(const AddPartialRows& args, cudaStream_t stream) {
  if (args.cols == 0) return;
  dispatch_activation("add_partial_rows", args.accum_dtype, [&]<class Accum>() {
    add_partial_rows_kernel<Accum><<<column_blocks(args.cols), dim3(kColumns, kLanesY), 0, stream>>>(args);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

int64_t column_sum_workspace_floats(int64_t rows, int64_t cols) {
  return num_partials(rows) * cols;
}

void column_sum(const ColumnSum& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return;
  const int64_t partials = num_partials(args.rows), rows_per_partial = (args.rows + partials - 1) / partials;
  const dim3 grid(column_blocks(args.cols), static_cast<unsigned>(partials));
  dispatch_activation("column_sum", args.dtype, [&]<class T>() {
    column_sum_kernel<T><<<grid, dim3(kColumns, kLanesY), 0, stream>>>(args, rows_per_partial);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
  add_partial_rows({args.workspace, args.accum, partials, args.cols, args.accum_dtype}, stream);
}

}  // namespace hearth::kernels
