#include "kernels/cross_entropy.h"

#include <cooperative_groups.h>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

// Kept parts fill an SM's shared memory in two blocks or more (1 KB each is CUDA's, and some hundred bytes
// are for the reductions), so that one loads while others reduce and store. Narrow rows take small blocks.
constexpr int kWideThreads = 512, kMediumThreads = 256, kNarrowThreads = 128, kThreadsPerSm = 1536;
constexpr int64_t kPartBytes = 228 * 1024 / 2 - 1536, kMediumBytes = 48 * 1024, kNarrowBytes = 18 * 1024;
constexpr int64_t kLargestPartBytes = 226 * 1024;  // what one block may have, less the reductions' memory
constexpr int kMaxParts = 8;                       // of a cluster that every Hopper device can run
constexpr int kStreamingThreads = 1024, kGradientThreads = 512;

enum class Mode { LossAndGradient, Logprob, Statistics };

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

// Adds kVecs vectors, vector v starting at column first + v * stride; columns from `valid` on do not count.
template <class T, int kVec, int kVecs>
__device__ __forceinline__ void add_vectors(Online& state, const Packed<T, kVec> (&x)[kVecs], int first,
                                            int stride, int valid) {
  float max = state.max;
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    for_valid<kVec>(first + v * stride, valid, [&](int i) { max = fmaxf(max, element<T>(x[v], i)); });
  float sum = state.sum * exponential<T>(state.max - max);
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    for_valid<kVec>(first + v * stride, valid,
                    [&](int i) { sum += exponential<T>(element<T>(x[v], i) - max); });
  state = {max, sum};
}

struct Gradient {
  float max, factor, scale;  // factor = scale / sum
  int target, valid;
};

template <class T, int kVec>
__device__ __forceinline__ Packed<T, kVec> gradient_of(const Packed<T, kVec>& x, int c, const Gradient& g) {
  float values[kVec] = {};
  for_valid<kVec>(c, g.valid,
                  [&](int i) { values[i] = exponential<T>(element<T>(x, i) - g.max) * g.factor; });
  if (static_cast<unsigned>(g.target - c) < kVec) {  // one vector of the row
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      if (c + i == g.target) values[i] -= g.scale;
  }
  return pack<T>(values);
}

constexpr int kNoColumn = -1;  // before every vector of a row, so it matches none of their elements

// The target's place among the valid columns.
struct Target {
  bool ignored;
  int column;  // kNoColumn: not among them
};

__device__ __forceinline__ Target read_target(const CrossEntropyArgs& a, int64_t row) {
  const int64_t id = read_id(a.targets, a.targets_dtype == DType::I64, row);
  const bool inside = id >= a.first_id && id < a.first_id + a.valid_vocab;
  return {id == a.ignore_index, inside ? static_cast<int>(id - a.first_id) : kNoColumn};
}

// What a row needs before its logits are overwritten.
struct Row {
  Target target;
  float target_logit;  // without a column: NaN, in statistics 0
};

template <Mode kMode, class T>
__device__ __forceinline__ Row read_row(const CrossEntropyArgs& a, int64_t row, const T* logits) {
  const Target target = read_target(a, row);
  const bool has_logit = target.column != kNoColumn && !(kMode == Mode::Statistics && target.ignored);
  const float missing = kMode == Mode::Statistics ? 0.0f : __int_as_float(0x7fffffff);
  return {target, has_logit ? to_float(logits[target.column]) : missing};
}

template <class T, int kThreads, int kVec>
__device__ void write_zeros(T* logits, int64_t cols) {
  const auto zeros = pack<T, kVec>({});
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < cols; c += kThreads * kVec)
    store_packed<T, kVec>(logits + c, zeros);
}

constexpr int kBatch = 4;  // vectors in flight per thread of the kernels that stream a row

// Turns a row of logits into its gradient.
template <class T, int kThreads, int kVec>
__device__ __forceinline__ void write_gradient(T* logits, int cols, const Gradient& gradient) {
  constexpr int kStride = kThreads * kVec;
  Packed<T, kVec> x[kBatch];
  for (int first = threadIdx.x * kVec; first < cols; first += kBatch * kStride) {
#pragma unroll
    for (int v = 0; v < kBatch; ++v)
      if (first + v * kStride < cols) x[v] = load_packed<T, kVec>(logits + first + v * kStride);
#pragma unroll
    for (int v = 0; v < kBatch; ++v)
      if (first + v * kStride < cols)
        store_packed<T, kVec>(logits + first + v * kStride,
                              gradient_of<T, kVec>(x[v], first + v * kStride, gradient));
  }
}

// Stores the row's result where `stores` and returns what the gradient needs.
template <Mode kMode>
__device__ __forceinline__ Gradient finish(const CrossEntropyArgs& a, int64_t index, const Row& row,
                                           Online total, bool stores) {
  if constexpr (kMode == Mode::Statistics) {
    if (stores) {
      float* out = a.out + index * 3;
      out[0] = total.sum == 0.0f ? __int_as_float(0xff800000) : total.max;  // no column above -inf: -inf
      out[1] = total.sum;
      out[2] = row.target_logit;
    }
    return {};
  }
  const float loss = logf(total.sum) + total.max - row.target_logit;
  if (stores) a.out[index] = kMode == Mode::Logprob ? -loss : loss;
  // A wrong target makes the whole row NaN, so that the gradient cannot pass for a good one.
  const float scale = row.target_logit == row.target_logit ? a.scale : row.target_logit;
  return {total.max, scale / total.sum, scale, row.target.column, static_cast<int>(a.valid_vocab)};
}

// The cluster's barrier without its memory fence: what it is for is that every block has started, and so has
// its shared memory. Arriving early hides the wait behind the loads.
__device__ __forceinline__ void cluster_arrive_started() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait_started() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Joins the parts of a row that the blocks of the cluster have seen, in their order; every thread returns the
// whole. The caller has called cluster_arrive_started.
template <class T>
__device__ Online cluster_merge(const cooperative_groups::cluster_group& cluster, Online value) {
  __shared__ Online parts[kMaxParts];
  cluster_wait_started();
  if (threadIdx.x < cluster.num_blocks())
    *cluster.map_shared_rank(&parts[cluster.block_rank()], static_cast<int>(threadIdx.x)) = value;
  cluster.sync();  // all parts are here before anyone reads them, and nobody writes to a block that has ended
  value = parts[0];
  for (unsigned i = 1; i < cluster.num_blocks(); ++i) value = merge<T>(value, parts[i]);
  return value;
}

// Reads a row once. The blocks of a cluster share it: each keeps `part` columns (a multiple of the vector) in
// shared memory, where a thread copies and reads its own vectors only, so that no barrier waits for the
// copies.
template <class T, int kThreads, Mode kMode>
__global__ void __launch_bounds__(kThreads, kThreadsPerSm / kThreads)
    cross_entropy_row_kernel(const CrossEntropyArgs a, int part) {
  constexpr int kVec = kVecElements<T>, kStride = kThreads * kVec;
  extern __shared__ Words kept[];
  const auto cluster = cooperative_groups::this_cluster();
  const int parts = static_cast<int>(cluster.num_blocks()), rank = static_cast<int>(cluster.block_rank());
  const int64_t index = blockIdx.x / cluster.num_blocks();
  T* logits = static_cast<T*>(a.logits) + index * a.row_stride;
  const int begin = rank * part, end = min(begin + part, static_cast<int>(a.cols));
  const int first = begin + static_cast<int>(threadIdx.x) * kVec;
  const Row row = read_row<kMode>(a, index, logits);
  const bool stores = rank == 0 && threadIdx.x == 0;
  if (row.target.ignored) {  // the whole cluster alike
    if (stores) a.out[index] = 0.0f;
    if constexpr (kMode == Mode::LossAndGradient) write_zeros<T, kThreads, kVec>(logits + begin, end - begin);
    return;
  }
  if (parts > 1) cluster_arrive_started();
  for (int c = first, slot = static_cast<int>(threadIdx.x); c < end; c += kStride, slot += kThreads)
    copy_async(&kept[slot], logits + c);
  copy_async_commit();
  copy_async_wait<0>();
  const auto kept_vector = [&](int c) {
    return load_packed<T, kVec>(reinterpret_cast<const T*>(kept) + (c - begin));
  };
  const int valid = min(static_cast<int>(a.valid_vocab), end);
  Online state;
  for (int c = first; c < valid; c += 2 * kStride) {
    Packed<T, kVec> x[2];
    x[0] = kept_vector(c);
    if (c + kStride < valid) x[1] = kept_vector(c + kStride);
    add_vectors<T, kVec, 2>(state, x, c, kStride, valid);
  }
  // The barriers of the merges also keep the stores below behind every thread's read of the target's logit.
  Online total = block_merge<T, kThreads>(state);
  if (parts > 1) total = cluster_merge<T>(cluster, total);
  const Gradient gradient = finish<kMode>(a, index, row, total, stores);
  if constexpr (kMode == Mode::LossAndGradient) {
#pragma unroll 2
    for (int c = first; c < end; c += kStride)
      store_packed<T, kVec>(logits + c, gradient_of<T, kVec>(kept_vector(c), c, gradient));
  }
}

// Any width, and with kVec = 1 any alignment; for a gradient it reads a row twice.
template <class T, int kThreads, int kVec, int kVecs, Mode kMode>
__global__ void __launch_bounds__(kThreads) cross_entropy_streaming_kernel(const CrossEntropyArgs a) {
  constexpr int kStride = kThreads * kVec;
  const int64_t index = blockIdx.x;
  T* logits = static_cast<T*>(a.logits) + index * a.row_stride;
  const Row row = read_row<kMode>(a, index, logits);
  if (kMode != Mode::Statistics && row.target.ignored) {
    if (threadIdx.x == 0) a.out[index] = 0.0f;
    if constexpr (kMode == Mode::LossAndGradient) write_zeros<T, kThreads, kVec>(logits, a.cols);
    return;
  }
  const int cols = static_cast<int>(a.cols), valid = static_cast<int>(a.valid_vocab);
  Packed<T, kVec> x[kVecs];
  Online state;
  for (int first = static_cast<int>(threadIdx.x) * kVec; first < valid; first += kVecs * kStride) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      if (first + v * kStride < valid) x[v] = load_packed<T, kVec>(logits + first + v * kStride);
    add_vectors<T, kVec, kVecs>(state, x, first, kStride, valid);
  }
  // block_merge's barrier also keeps the stores below behind every thread's read of the target's logit.
  const Online total = block_merge<T, kThreads>(state);
  const Gradient gradient = finish<kMode>(a, index, row, total, threadIdx.x == 0);
  if constexpr (kMode == Mode::LossAndGradient) write_gradient<T, kThreads, kVec>(logits, cols, gradient);
}

// The sum is known, so one pass does, and no thread waits for another.
template <class T, int kThreads, int kVec>
__global__ void __launch_bounds__(kThreads) vocab_parallel_gradient_kernel(const CrossEntropyArgs a) {
  T* logits = static_cast<T*>(a.logits) + int64_t{blockIdx.x} * a.row_stride;
  const Target target = read_target(a, blockIdx.x);
  if (target.ignored) {
    write_zeros<T, kThreads, kVec>(logits, a.cols);
    return;
  }
  const Gradient gradient{a.log_sum_exp[blockIdx.x], a.scale, a.scale, target.column,
                          static_cast<int>(a.valid_vocab)};
  write_gradient<T, kThreads, kVec>(logits, static_cast<int>(a.cols), gradient);
}

template <class T>
bool rows_are_aligned(const CrossEntropyArgs& a) {
  constexpr int kVec = kVecElements<T>;
  return a.cols % kVec == 0 && a.row_stride % kVec == 0 && is_aligned_16(a.logits);
}

template <class T, int kThreads, Mode kMode>
void launch_rows(const CrossEntropyArgs& a, int parts, int64_t part, cudaStream_t stream) {
  const auto kernel = cross_entropy_row_kernel<T, kThreads, kMode>;
  const auto bytes = static_cast<int>(part * int64_t{sizeof(T)});
  allow_shared_memory(kernel, bytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(parts), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid_size("cross_entropy", a.rows * parts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  HEARTH_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, a, static_cast<int>(part)));
}

template <class T, Mode kMode>
void launch(const CrossEntropyArgs& a, cudaStream_t stream) {
  constexpr int64_t kVec = kVecElements<T>;
  int parts = 1;
  const auto part_of = [&] { return (a.cols + parts * kVec - 1) / (parts * kVec) * kVec; };
  while (parts < kMaxParts && part_of() * int64_t{sizeof(T)} > kPartBytes) parts *= 2;
  const int64_t bytes = part_of() * int64_t{sizeof(T)};
  if (!rows_are_aligned<T>(a) || bytes > kLargestPartBytes) {
    cross_entropy_streaming_kernel<T, kStreamingThreads, 1, kBatch, kMode>
        <<<grid_size("cross_entropy", a.rows), kStreamingThreads, 0, stream>>>(a);
  } else if (bytes <= kNarrowBytes) {
    launch_rows<T, kNarrowThreads, kMode>(a, parts, part_of(), stream);
  } else if (bytes <= kMediumBytes) {
    launch_rows<T, kMediumThreads, kMode>(a, parts, part_of(), stream);
  } else {
    launch_rows<T, kWideThreads, kMode>(a, parts, part_of(), stream);
  }
}

// Statistics keep nothing of a row: a warp takes one, and waits for nobody.
template <class T>
void launch_statistics(const CrossEntropyArgs& a, cudaStream_t stream) {
  const unsigned grid = grid_size("cross_entropy", a.rows);
  const auto launch = [&]<int kVec>() {
    cross_entropy_streaming_kernel<T, kWarp, kVec, 2 * kBatch, Mode::Statistics>
        <<<grid, kWarp, 0, stream>>>(a);
  };
  rows_are_aligned<T>(a) ? launch.template operator()<kVecElements<T>>() : launch.template operator()<1>();
}

// Narrow rows take small blocks, whose threads have several vectors of a row each.
template <class T>
void launch_gradient(const CrossEntropyArgs& a, cudaStream_t stream) {
  const unsigned grid = grid_size("cross_entropy", a.rows);
  const auto launch = [&]<int kThreads, int kVec>() {
    vocab_parallel_gradient_kernel<T, kThreads, kVec><<<grid, kThreads, 0, stream>>>(a);
  };
  if (!rows_are_aligned<T>(a)) {
    launch.template operator()<kGradientThreads, 1>();
  } else if (a.cols * int64_t{sizeof(T)} <= kNarrowBytes) {
    launch.template operator()<kNarrowThreads, kVecElements<T>>();
  } else {
    launch.template operator()<kGradientThreads, kVecElements<T>>();
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

// Calls launch.template operator()<T>().
template <class Launch>
void run(const char* op, const CrossEntropyArgs& args, int64_t least_valid, Launch&& launch) {
  check_args(op, args, least_valid);
  if (args.rows == 0) return;
  dispatch_activation(op, args.dtype, launch);
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void cross_entropy_forward_backward(const CrossEntropyArgs& args, cudaStream_t stream) {
  run("cross_entropy_forward_backward", args, 1,
      [&]<class T>() { launch<T, Mode::LossAndGradient>(args, stream); });
}

void token_logprobs(const CrossEntropyArgs& args, cudaStream_t stream) {
  run("token_logprobs", args, 1, [&]<class T>() { launch<T, Mode::Logprob>(args, stream); });
}

void vocab_parallel_statistics(const CrossEntropyArgs& args, cudaStream_t stream) {
  run("vocab_parallel_statistics", args, 0, [&]<class T>() { launch_statistics<T>(args, stream); });
}

void vocab_parallel_gradient(const CrossEntropyArgs& args, cudaStream_t stream) {
  run("vocab_parallel_gradient", args, 0, [&]<class T>() { launch_gradient<T>(args, stream); });
}

}  // namespace hearth::kernels
