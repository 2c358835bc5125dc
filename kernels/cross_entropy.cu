#include "kernels/cross_entropy.h"

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr float kLowest = -3.402823466e38f;  // -FLT_MAX: unlike -inf, differences of it are never NaN

// One streaming block fills an SM: its row is then the only one there between its two passes, and the rows of
// all SMs stay in the L2 cache. Narrower rows run as two blocks of half the size, so that one loads while the
// other reduces.
constexpr int kStreamingThreads = 1024, kHalf = 512;

enum class Mode { LossAndGradient, Logprob, Statistics };

// For bf16 logits the hardware's approximate exponential (flushing to zero below 2^-126) is far inside the
// rounding of the store, and the arithmetic then hides behind the loads.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 2) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504088896341f));
    return result;
  }
  return expf(x);
}

// Maximum and sum of exp(x - maximum) of what a thread has seen.
struct Online {
  float max = kLowest, sum = 0.0f;
};

template <class T>
__device__ __forceinline__ Online merge(Online a, Online b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * exponential<T>(a.max - max) + b.sum * exponential<T>(b.max - max)};
}

// Merges over the block in a fixed order; every thread returns the result. Called once per block.
template <class T, int kThreads>
__device__ Online block_merge(Online value) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kWarps <= kWarp, "one warp merges the warps' results");
  __shared__ Online warps[kWarps];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = merge<T>(value, {__shfl_xor_sync(kFullMask, value.max, offset),
                             __shfl_xor_sync(kFullMask, value.sum, offset)});
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();  // all warps have written before anyone reads
  const int lane = threadIdx.x % kWarp;
  value = lane < kWarps ? warps[lane] : Online{};
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = merge<T>(value, {__shfl_xor_sync(kFullMask, value.max, offset),
                             __shfl_xor_sync(kFullMask, value.sum, offset)});
  return value;
}

// Calls body(i) for the elements of a vector at column c that lie below `limit`; whole vectors take no
// comparisons.
template <int kVec, class Body>
__device__ __forceinline__ void for_valid(int c, int limit, Body&& body) {
  if (c + kVec <= limit) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) body(i);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      if (c + i < limit) body(i);
  }
}

// Adds kVecs vectors, vector v starting at column first + v * stride; columns from `valid` on do not count.
template <class T, int kVec, int kVecs>
__device__ __forceinline__ void add_vectors(Online& state, const Vec<T, kVec> (&x)[kVecs], int first,
                                            int stride, int valid) {
  float max = state.max;
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    for_valid<kVec>(first + v * stride, valid, [&](int i) { max = fmaxf(max, to_float(x[v].at[i])); });
  float sum = state.sum * exponential<T>(state.max - max);
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    for_valid<kVec>(first + v * stride, valid,
                    [&](int i) { sum += exponential<T>(to_float(x[v].at[i]) - max); });
  state = {max, sum};
}

struct Gradient {
  float max, factor, scale;  // factor = scale / sum
  int target, valid;
};

template <class T, int kVec>
__device__ __forceinline__ Vec<T, kVec> gradient_of(const Vec<T, kVec>& x, int c, const Gradient& g) {
  Vec<T, kVec> out;
#pragma unroll
  for (int i = 0; i < kVec; ++i) out.at[i] = from_float<T>(0.0f);
  for_valid<kVec>(c, g.valid, [&](int i) {
    out.at[i] = from_float<T>(exponential<T>(to_float(x.at[i]) - g.max) * g.factor);
  });
  if (static_cast<unsigned>(g.target - c) < kVec) {  // one vector of the row
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      if (c + i == g.target)
        out.at[i] = from_float<T>(exponential<T>(to_float(x.at[i]) - g.max) * g.factor - g.scale);
  }
  return out;
}

constexpr int kNoColumn = -1;  // before every vector of a row, so it matches none of their elements

// The target's place among the valid columns.
struct Target {
  bool ignored;
  int column;  // kNoColumn: not among them
};

__device__ __forceinline__ Target read_target(const CrossEntropyArgs& a) {
  const int64_t id = read_id(a.targets, a.targets_dtype == DType::I64, blockIdx.x);
  const bool inside = id >= a.first_id && id < a.first_id + a.valid_vocab;
  return {id == a.ignore_index, inside ? static_cast<int>(id - a.first_id) : kNoColumn};
}

// What a row needs before its logits are overwritten.
struct Row {
  Target target;
  float target_logit;  // without a column: NaN, in statistics 0
};

template <Mode kMode, class T>
__device__ __forceinline__ Row read_row(const CrossEntropyArgs& a, const T* logits) {
  const Target target = read_target(a);
  const bool has_logit = target.column != kNoColumn && !(kMode == Mode::Statistics && target.ignored);
  const float missing = kMode == Mode::Statistics ? 0.0f : __int_as_float(0x7fffffff);
  return {target, has_logit ? to_float(logits[target.column]) : missing};
}

template <class T, int kThreads, int kVec>
__device__ void write_zeros(T* logits, int64_t cols) {
  Vec<T, kVec> zero;
#pragma unroll
  for (int i = 0; i < kVec; ++i) zero.at[i] = from_float<T>(0.0f);
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < cols; c += kThreads * kVec) store(logits + c, zero);
}

constexpr int kBatch = 4;  // vectors in flight per thread of the kernels that stream a row

// Turns a row of logits into its gradient.
template <class T, int kThreads, int kVec>
__device__ __forceinline__ void write_gradient(T* logits, int cols, const Gradient& gradient) {
  constexpr int kStride = kThreads * kVec;
  Vec<T, kVec> x[kBatch];
  for (int first = threadIdx.x * kVec; first < cols; first += kBatch * kStride) {
#pragma unroll
    for (int v = 0; v < kBatch; ++v)
      if (first + v * kStride < cols) x[v] = load<T, kVec>(logits + first + v * kStride);
#pragma unroll
    for (int v = 0; v < kBatch; ++v)
      if (first + v * kStride < cols)
        store(logits + first + v * kStride, gradient_of(x[v], first + v * kStride, gradient));
  }
}

// Stores the row's result and returns what the gradient needs.
template <Mode kMode>
__device__ __forceinline__ Gradient finish(const CrossEntropyArgs& a, const Row& row, Online total) {
  if constexpr (kMode == Mode::Statistics) {
    if (threadIdx.x == 0) {
      float* out = a.out + int64_t{blockIdx.x} * 3;
      out[0] = total.sum == 0.0f ? __int_as_float(0xff800000) : total.max;  // no column above -inf: -inf
      out[1] = total.sum;
      out[2] = row.target_logit;
    }
    return {};
  }
  const float loss = logf(total.sum) + total.max - row.target_logit;
  if (threadIdx.x == 0) a.out[blockIdx.x] = kMode == Mode::Logprob ? -loss : loss;
  // A wrong target makes the whole row NaN, so that the gradient cannot pass for a good one.
  const float scale = row.target_logit == row.target_logit ? a.scale : row.target_logit;
  return {total.max, scale / total.sum, scale, row.target.column, static_cast<int>(a.valid_vocab)};
}

// Rows that fit: kVecs vectors a thread stay in registers.
template <class T, int kThreads, int kVecs, Mode kMode>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    cross_entropy_cached_kernel(const CrossEntropyArgs a) {
  constexpr int kVec = kVecElements<T>;
  T* logits = static_cast<T*>(a.logits) + int64_t{blockIdx.x} * a.row_stride;
  const Row row = read_row<kMode>(a, logits);
  if (kMode != Mode::Statistics && row.target.ignored) {
    if (threadIdx.x == 0) a.out[blockIdx.x] = 0.0f;
    if constexpr (kMode == Mode::LossAndGradient) write_zeros<T, kThreads, kVec>(logits, a.cols);
    return;
  }
  Vec<T, kVec> kept[kVecs];
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    const int c = (v * kThreads + threadIdx.x) * kVec;
    if (c < a.cols) kept[v] = load<T, kVec>(logits + c);
  }
  Online state;
  add_vectors<T, kVec, kVecs>(state, kept, threadIdx.x * kVec, kThreads * kVec,
                              static_cast<int>(a.valid_vocab));
  const Gradient gradient = finish<kMode>(a, row, block_merge<T, kThreads>(state));
  if constexpr (kMode == Mode::LossAndGradient) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      const int c = (v * kThreads + threadIdx.x) * kVec;
      if (c < a.cols) store(logits + c, gradient_of(kept[v], c, gradient));
    }
  }
}

// Any width, and with kVec = 1 any alignment.
template <class T, int kVec, Mode kMode>
__global__ void __launch_bounds__(kStreamingThreads)
    cross_entropy_streaming_kernel(const CrossEntropyArgs a) {
  constexpr int kThreads = kStreamingThreads, kStride = kThreads * kVec;
  T* logits = static_cast<T*>(a.logits) + int64_t{blockIdx.x} * a.row_stride;
  const Row row = read_row<kMode>(a, logits);
  if (kMode != Mode::Statistics && row.target.ignored) {
    if (threadIdx.x == 0) a.out[blockIdx.x] = 0.0f;
    if constexpr (kMode == Mode::LossAndGradient) write_zeros<T, kThreads, kVec>(logits, a.cols);
    return;
  }
  const int cols = static_cast<int>(a.cols), valid = static_cast<int>(a.valid_vocab);
  Vec<T, kVec> x[kBatch];
  Online state;
  for (int first = threadIdx.x * kVec; first < valid; first += kBatch * kStride) {
#pragma unroll
    for (int v = 0; v < kBatch; ++v)
      if (first + v * kStride < valid) x[v] = load<T, kVec>(logits + first + v * kStride);
    add_vectors<T, kVec, kBatch>(state, x, first, kStride, valid);
  }
  // block_merge's barrier also keeps the stores below behind every thread's read of the target's logit.
  const Gradient gradient = finish<kMode>(a, row, block_merge<T, kThreads>(state));
  if constexpr (kMode == Mode::LossAndGradient) write_gradient<T, kThreads, kVec>(logits, cols, gradient);
}

// The sum is known, so one pass does, and no thread waits for another.
template <class T, int kVec>
__global__ void __launch_bounds__(kHalf) vocab_parallel_gradient_kernel(const CrossEntropyArgs a) {
  T* logits = static_cast<T*>(a.logits) + int64_t{blockIdx.x} * a.row_stride;
  const Target target = read_target(a);
  if (target.ignored) {
    write_zeros<T, kHalf, kVec>(logits, a.cols);
    return;
  }
  const Gradient gradient{a.log_sum_exp[blockIdx.x], a.scale, a.scale, target.column,
                          static_cast<int>(a.valid_vocab)};
  write_gradient<T, kHalf, kVec>(logits, static_cast<int>(a.cols), gradient);
}

template <class T>
bool rows_are_aligned(const CrossEntropyArgs& a) {
  constexpr int kVec = kVecElements<T>;
  return a.cols % kVec == 0 && a.row_stride % kVec == 0 && is_aligned_16(a.logits);
}

template <class T, Mode kMode>
void launch(const CrossEntropyArgs& a, unsigned grid, cudaStream_t stream) {
  constexpr int kVec = kVecElements<T>, kSweep = kHalf * kVec;
  if (!rows_are_aligned<T>(a)) {
    cross_entropy_streaming_kernel<T, 1, kMode><<<grid, kStreamingThreads, 0, stream>>>(a);
  } else if (a.cols <= kSweep) {
    cross_entropy_cached_kernel<T, kHalf, 1, kMode><<<grid, kHalf, 0, stream>>>(a);
  } else if (a.cols <= 4 * kSweep) {
    cross_entropy_cached_kernel<T, kHalf, 4, kMode><<<grid, kHalf, 0, stream>>>(a);
  } else if (a.cols <= 8 * kSweep) {
    cross_entropy_cached_kernel<T, 2 * kHalf, 4, kMode><<<grid, 2 * kHalf, 0, stream>>>(a);
  } else if (a.cols <= 12 * kSweep) {  // 49152 bf16 columns; 8 vectors of 1024 threads would spill
    cross_entropy_cached_kernel<T, 2 * kHalf, 6, kMode><<<grid, 2 * kHalf, 0, stream>>>(a);
  } else {
    cross_entropy_streaming_kernel<T, kVec, kMode><<<grid, kStreamingThreads, 0, stream>>>(a);
  }
}

template <class T>
void launch_gradient(const CrossEntropyArgs& a, unsigned grid, cudaStream_t stream) {
  if (rows_are_aligned<T>(a)) {
    vocab_parallel_gradient_kernel<T, kVecElements<T>><<<grid, kHalf, 0, stream>>>(a);
  } else {
    vocab_parallel_gradient_kernel<T, 1><<<grid, kHalf, 0, stream>>>(a);
  }
}

void check_args(const char* op, const CrossEntropyArgs& args, int64_t least_valid) {
  require_launch(args.valid_vocab >= least_valid && args.valid_vocab <= args.cols, op,
                 least_valid == 0 ? "valid_vocab must be in [0, cols]" : "valid_vocab must be in [1, cols]",
                 args.valid_vocab);
  // Columns are counted in 32 bits, with room for one sweep of the block beyond the last.
  require_launch(args.cols <= (int64_t{1} << 30), op, "cols must be at most 2^30", args.cols);
  require_launch(args.row_stride >= args.cols, op, "row_stride must be at least cols", args.row_stride);
}

template <Mode kMode>
void run(const char* op, const CrossEntropyArgs& args, cudaStream_t stream) {
  check_args(op, args, kMode == Mode::Statistics ? 0 : 1);
  if (args.rows == 0) return;
  const unsigned grid = grid_size(op, args.rows);
  dispatch_activation(op, args.dtype, [&]<class T>() { launch<T, kMode>(args, grid, stream); });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void cross_entropy_forward_backward(const CrossEntropyArgs& args, cudaStream_t stream) {
  run<Mode::LossAndGradient>("cross_entropy_forward_backward", args, stream);
}

void token_logprobs(const CrossEntropyArgs& args, cudaStream_t stream) {
  run<Mode::Logprob>("token_logprobs", args, stream);
}

void vocab_parallel_statistics(const CrossEntropyArgs& args, cudaStream_t stream) {
  run<Mode::Statistics>("vocab_parallel_statistics", args, stream);
}

void vocab_parallel_gradient(const CrossEntropyArgs& args, cudaStream_t stream) {
  constexpr const char* kOp = "vocab_parallel_gradient";
  check_args(kOp, args, 0);
  if (args.rows == 0) return;
  const unsigned grid = grid_size(kOp, args.rows);
  dispatch_activation(kOp, args.dtype, [&]<class T>() { launch_gradient<T>(args, grid, stream); });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
