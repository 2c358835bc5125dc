#include "kernels/column_sum.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kColumns = 32;           // a warp reads 128 contiguous bytes of a row
constexpr int64_t kMaxPartials = 256;  // about two blocks per SM of an H100 at cols = 32
constexpr int64_t kMinRowsPerPartial = 64;

// Of a block: threads that share a column, each with a few loads under way.
template <int kLanes_, int kInFlight_>
struct Split {
  static constexpr int kLanes = kLanes_, kInFlight = kInFlight_, kThreads = kColumns * kLanes;
};
using OfRows = Split<16, 4>;       // the least part of a column sum at once
using OfPartials = Split<32, 12>;  // 384 rows at once: all that a norm leaves

int64_t num_partials(int64_t rows) {
  return std::clamp<int64_t>((rows + kMinRowsPerPartial - 1) / kMinRowsPerPartial, 1, kMaxPartials);
}

// Sums rows [begin, end) of column c over the block's y lanes. Valid in lane y = 0 only.
template <class Split, class T>
__device__ float sum_rows(const T* x, int64_t begin, int64_t end, int64_t cols, int64_t c, bool active) {
  __shared__ float lanes[Split::kLanes][kColumns];
  float sum = 0.0f;
  for (int64_t first = begin + threadIdx.y; active && first < end;
       first += Split::kInFlight * Split::kLanes) {
    float values[Split::kInFlight];
#pragma unroll
    for (int i = 0; i < Split::kInFlight; ++i) {
      const int64_t r = first + i * Split::kLanes;
      values[i] = r < end ? to_float(x[r * cols + c]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < Split::kInFlight; ++i) sum += values[i];
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // all lanes have written before lane 0 adds them
  if (threadIdx.y != 0) return 0.0f;
#pragma unroll
  for (int y = 1; y < Split::kLanes; ++y) sum += lanes[y][threadIdx.x];
  return sum;
}

struct BufferPair {
  AddPartialRows at[2];
};

// Block y takes buffer y.
__global__ void __launch_bounds__(OfPartials::kThreads)
    add_partial_rows_kernel(const __grid_constant__ BufferPair buffers) {
  const AddPartialRows& a = buffers.at[blockIdx.y];
  const int64_t c = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  const bool active = c < a.cols;
  const auto add = [&]<class Accum>(Accum* accum) {
    // The kernel before does not write it, and is itself behind all that came earlier.
    const float before = active && threadIdx.y == 0 ? to_float(accum[c]) : 0.0f;
    wait_for_previous_kernel();
    const float sum = sum_rows<OfPartials>(a.partial, 0, a.num_partials, a.cols, c, active);
    if (active && threadIdx.y == 0) accum[c] = from_float<Accum>(before + sum);
  };
  a.accum_dtype == DType::F32 ? add(static_cast<float*>(a.accum)) : add(static_cast<Bf16Device*>(a.accum));
}

template <class T>
__global__ void __launch_bounds__(OfRows::kThreads)
    column_sum_kernel(const ColumnSum a, int64_t rows_per_partial) {
  const int64_t c = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  const bool active = c < a.cols;
  const int64_t begin = int64_t{blockIdx.y} * rows_per_partial, end = min(begin + rows_per_partial, a.rows);
  const float sum = sum_rows<OfRows>(static_cast<const T*>(a.x), begin, end, a.cols, c, active);
  if (active && threadIdx.y == 0) a.workspace[blockIdx.y * a.cols + c] = sum;
}

unsigned column_blocks(int64_t cols) {
  return grid_size("column_sum", (cols + kColumns - 1) / kColumns);
}

void add_buffers(const BufferPair& buffers, unsigned count, cudaStream_t stream) {
  for (const AddPartialRows& a : buffers.at)
    if (a.accum_dtype != DType::F32 && a.accum_dtype != DType::BF16)
      fail_dtype("add_partial_rows", a.accum_dtype);
  const int64_t cols = std::max(buffers.at[0].cols, buffers.at[1].cols);
  if (cols == 0) return;
  launch_behind(add_partial_rows_kernel, dim3(column_blocks(cols), count), dim3(kColumns, OfPartials::kLanes),
                stream, buffers);
}

}  // namespace

void add_partial_rows(const AddPartialRows& args, cudaStream_t stream) {
  add_buffers({{args, args}}, 1, stream);
}
void add_partial_rows(const AddPartialRows& first, const AddPartialRows& second, cudaStream_t stream) {
  add_buffers({{first, second}}, 2, stream);
}

int64_t column_sum_workspace_floats(int64_t rows, int64_t cols) {
  return num_partials(rows) * cols;
}

void column_sum(const ColumnSum& args, cudaStream_t stream) {
  if (args.rows == 0 || args.cols == 0) return;
  const int64_t partials = num_partials(args.rows), rows_per_partial = (args.rows + partials - 1) / partials;
  const dim3 grid(column_blocks(args.cols), static_cast<unsigned>(partials));
  dispatch_activation("column_sum", args.dtype, [&]<class T>() {
    column_sum_kernel<T><<<grid, dim3(kColumns, OfRows::kLanes), 0, stream>>>(args, rows_per_partial);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
  add_partial_rows({args.workspace, args.accum, partials, args.cols, args.accum_dtype}, stream);
}

}  // namespace hearth::kernels
