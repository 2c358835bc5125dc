#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kMaxThreads = 256, kChunkThreads = 128;
constexpr int kVecs = 3;  // vectors of a row that a lane of the backward has, all under way at once

template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) embedding_forward_kernel(const EmbeddingForwardArgs a) {
  const int64_t token = blockIdx.x, id = read_id(a.ids, a.ids_dtype == DType::I64, token);
  const bool inside = id >= a.first_id && id < a.first_id + a.vocab;
  const T* row = static_cast<const T*>(a.table) + (inside ? (id - a.first_id) * a.width : 0);
  T* out = static_cast<T*>(a.out) + token * a.width;
  Vec<T, kVec> absent;
#pragma unroll
  for (int i = 0; i < kVec; ++i) absent.at[i] = from_float<T>(a.absent);
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < a.width; c += int64_t{blockDim.x} * kVec)
    store(out + c, inside ? load<T, kVec>(row + c) : absent);
}

// A row's tokens are cut into chunks of a warp's width, counted from its first token, so that the cuts (and
// with them the bits) do not depend on the other rows. A row of one chunk is added at once. The chunks of a
// longer row are summed apart, so that a frequent id is not one block's work, and added by a second kernel.
// Their sums are in slots, two for every 32 positions, which hold one start of a long row and one later chunk
// of another at the most.
constexpr int kChunk = kWarp;

__device__ __forceinline__ float* chunk_sum(const EmbeddingBackwardArgs& a, int position, bool is_first) {
  return a.workspace + (int64_t{position / kChunk} * 2 + (is_first ? 1 : 0)) * a.width;
}

// Adds to kVec fp32 or bf16 accumulators, in accesses of at most 16 bytes.
template <class Accum, int kVec>
__device__ __forceinline__ void add_to(Accum* accum, const float (&sum)[kVec]) {
  constexpr int kPart = kVec < kVecElements<Accum> ? kVec : kVecElements<Accum>;
#pragma unroll
  for (int first = 0; first < kVec; first += kPart) {
    auto part = load<Accum, kPart>(accum + first);
#pragma unroll
    for (int i = 0; i < kPart; ++i) part.at[i] = from_float<Accum>(to_float(part.at[i]) + sum[first + i]);
    store(accum + first, part);
  }
}

// First place of `row` in the ascending rows; `last` is one of its places. 32 probes at a time, of which
// those below the row come first: all lanes of the warp take part.
__device__ int first_place(const int32_t* rows, int last, int row) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int low = 0, high = last;
  while (low < high) {
    const int step = (high - low + kWarp - 1) / kWarp, probe = low + lane * step;
    const int below = __popc(__ballot_sync(kFullMask, probe < high && rows[probe] < row));
    if (below == 0) return low;
    high = min(high, low + below * step);
    low += (below - 1) * step + 1;
  }
  return low;
}

// A warp has one position in the sorted rows and a slice of the row, kVecs vectors a lane; slices of a
// position are neighbours, so that a row of memory is open once. Only the warps at the start of a chunk work,
// and none waits for another.
template <class T, class Accum, int kVec>
__global__ void __launch_bounds__(kChunkThreads)
    embedding_backward_kernel(const EmbeddingBackwardArgs a, int slices) {
  let_next_kernel_come();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, tokens = static_cast<int>(a.tokens);
  constexpr int kWarps = kChunkThreads / kWarp;
  const int block = static_cast<int>(blockIdx.x) / slices,
            slice = static_cast<int>(blockIdx.x) - block * slices;
  const int start = block * kWarps + static_cast<int>(threadIdx.x) / kWarp, place = start + lane;
  // All that tells where chunks begin and end is under way before any of it is looked at.
  const auto row_at = [&](int position) {
    return position >= 0 && position < tokens ? a.sorted_rows[position] : -1;
  };
  const int my_row = row_at(place), my_token = place < tokens ? a.tokens_of[place] : 0;
  const int before = row_at(start - 1), chunk_before = row_at(start - kChunk),
            chunk_behind = row_at(start + kChunk);
  const int row = __shfl_sync(kFullMask, my_row, 0);
  if (row < 0 || row >= a.rows) return;
  const bool is_first = before != row;
  if (!is_first) {
    if (chunk_before != row) return;  // in the first chunk
    if ((start - first_place(a.sorted_rows, start, row)) % kChunk != 0) return;
  }
  const int count = __popc(__ballot_sync(kFullMask, my_row == row));
  const bool is_whole = is_first && chunk_behind != row;
  const auto column = [&](int v) { return ((slice * kVecs + v) * kWarp + lane) * kVec; };
  const int width = static_cast<int>(a.width);
  Accum* target = static_cast<Accum*>(a.dtable_accum) + row * a.width;
  // On its way to the L2 cache while the tokens are summed, without registers for it.
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    if (is_whole && column(v) < width) asm volatile("prefetch.global.L2 [%0];" ::"l"(target + column(v)));
  float sum[kVecs][kVec] = {};
  for (int n = 0; n < count; ++n) {
    const int64_t token = __shfl_sync(kFullMask, my_token, n);
    const T* from = static_cast<const T*>(a.dy) + token * a.width;
    Packed<T, kVec> dy[kVecs];
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
      if (column(v) < width) dy[v] = load_packed<T, kVec>(from + column(v));
#pragma unroll
    for (int v = 0; v < kVecs; ++v)
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[v][i] += element<T>(dy[v], i);
  }
#pragma unroll
  for (int v = 0; v < kVecs; ++v) {
    if (column(v) >= width) continue;
    if (is_whole) {
      add_to(target + column(v), sum[v]);
      continue;
    }
    constexpr int kPart = kVec < 4 ? kVec : 4;
    float* to = chunk_sum(a, start, is_first) + column(v);
#pragma unroll
    for (int first = 0; first < kVec; first += kPart) {
      Vec<float, kPart> part;
#pragma unroll
      for (int i = 0; i < kPart; ++i) part.at[i] = sum[v][first + i];
      store(to + first, part);
    }
  }
}

// Block x = 32 positions, block y = part of the row. Adds the chunks of the row of several chunks that starts
// in them.
template <class Accum, int kVec>
__global__ void __launch_bounds__(kMaxThreads) embedding_chunks_kernel(const EmbeddingBackwardArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, tokens = static_cast<int>(a.tokens);
  const int place = static_cast<int>(blockIdx.x) * kChunk + lane;
  const auto row_at = [&](int position) {
    return position >= 0 && position < tokens ? a.sorted_rows[position] : -1;
  };
  const int my_row = row_at(place), before = row_at(place - 1), chunk_behind = row_at(place + kChunk);
  const bool starts_long = my_row >= 0 && my_row < a.rows && chunk_behind == my_row && before != my_row;
  wait_for_previous_kernel();
  const unsigned starts = __ballot_sync(kFullMask, starts_long);
  if (starts == 0) return;
  const int first_lane = __ffs(static_cast<int>(starts)) - 1,
            row = __shfl_sync(kFullMask, my_row, first_lane);
  const int start = static_cast<int>(blockIdx.x) * kChunk + first_lane;
  int chunks = 1;
  for (int found = kWarp; found == kWarp; chunks += found)
    found = __popc(__ballot_sync(kFullMask, row_at(start + (chunks + lane) * kChunk) == row));
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (c >= a.width) return;
  float sum[kVec] = {};
#pragma unroll 8  // loads in flight; the additions stay in order
  for (int k = 0; k < chunks; ++k) {
    const auto from = load<float, kVec>(chunk_sum(a, start + k * kChunk, k == 0) + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] += from.at[i];
  }
  add_to(static_cast<Accum*>(a.dtable_accum) + row * a.width + c, sum);
}

unsigned thread_count(int64_t width, int64_t elements) {
  const int64_t vectors = (width + elements - 1) / elements;
  return static_cast<unsigned>(
      std::clamp<int64_t>((vectors + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads));
}

template <class T, int kVec>
void launch_forward(const EmbeddingForwardArgs& a, cudaStream_t stream) {
  embedding_forward_kernel<T, kVec>
      <<<grid_size("embedding_forward", a.tokens), thread_count(a.width, kVec), 0, stream>>>(a);
}

template <class T, class Accum, int kVec>
void launch_backward(const EmbeddingBackwardArgs& a, cudaStream_t stream) {
  const auto parts = [&](unsigned threads, int64_t elements) {
    const int64_t per_block = int64_t{threads} * elements, count = (a.width + per_block - 1) / per_block;
    require_launch(count <= 65535, "embedding_backward", "a row may take 65535 blocks", count);
    return static_cast<unsigned>(count);
  };
  constexpr int64_t kWarps = kChunkThreads / kWarp;
  const int64_t slices = parts(kWarp, kVecs * kVec), blocks = (a.tokens + kWarps - 1) / kWarps * slices;
  embedding_backward_kernel<T, Accum, kVec>
      <<<grid_size("embedding_backward", blocks), kChunkThreads, 0, stream>>>(a, static_cast<int>(slices));
  HEARTH_CUDA_CHECK(cudaGetLastError());
  if (a.tokens <= kChunk) return;             // no row has two chunks
  constexpr int kSums = kVec < 4 ? kVec : 4;  // 16 bytes of fp32
  const unsigned sum_threads = thread_count(a.width, kSums);
  const unsigned windows = grid_size("embedding_backward", (a.tokens + kChunk - 1) / kChunk);
  launch_behind(embedding_chunks_kernel<Accum, kSums>, dim3(windows, parts(sum_threads, kSums)),
                dim3(sum_threads), stream, a);
}

}  // namespace

void embedding_forward(const EmbeddingForwardArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.width == 0) return;
  dispatch_activation("embedding_forward", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned = args.width % kVec == 0 && is_aligned_16(args.table) && is_aligned_16(args.out);
    aligned ? launch_forward<T, kVec>(args, stream) : launch_forward<T, 1>(args, stream);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

int64_t embedding_backward_workspace_floats(int64_t tokens, int64_t width) {
  return (tokens + kChunk - 1) / kChunk * 2 * width;
}

void embedding_backward(const EmbeddingBackwardArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.width == 0) return;
  require_launch(args.tokens <= int64_t{1} << 30, "embedding_backward", "there may be 2^30 tokens",
                 args.tokens);
  dispatch_activation("embedding_backward", args.dtype, [&]<class T>() {
    dispatch_activation("embedding_backward", args.accum_dtype, [&]<class Accum>() {
      constexpr int kVec = kVecElements<T>;
      const bool aligned = args.width % kVec == 0 && is_aligned_16(args.dy) &&
                           is_aligned_16(args.dtable_accum) && is_aligned_16(args.workspace);
      aligned ? launch_backward<T, Accum, kVec>(args, stream) : launch_backward<T, Accum, 1>(args, stream);
    });
  });
}

}  // namespace hearth::kernels
