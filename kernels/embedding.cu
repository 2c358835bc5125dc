#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kMaxThreads = 256;

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

// Block x = position in the sorted ids, block y = part of the row. Only the block at the start of a run of
// equal ids works; it adds the whole run.
template <class T, class Accum, int kVec>
__global__ void __launch_bounds__(kMaxThreads) embedding_backward_kernel(const EmbeddingBackwardArgs a) {
  const int64_t start = blockIdx.x, id = a.sorted_ids[start];
  if (id < a.first_id || id >= a.first_id + a.vocab || (start > 0 && a.sorted_ids[start - 1] == id)) return;
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVec;
  if (c >= a.width) return;
  float sum[kVec];
  Accum* target = static_cast<Accum*>(a.dtable_accum) + (id - a.first_id) * a.width + c;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] = to_float(target[i]);
    // Loads of later rows do not wait for the additions of earlier ones.
#pragma unroll 4
  for (int64_t n = start; n < a.tokens; ++n) {
    if (a.sorted_ids[n] != id) break;
    const auto dy = load<T, kVec>(static_cast<const T*>(a.dy) + a.tokens_of[n] * a.width + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] += to_float(dy.at[i]);
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) target[i] = from_float<Accum>(sum[i]);
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

template <class T, int kVec>
void launch_backward(const EmbeddingBackwardArgs& a, cudaStream_t stream) {
  const unsigned threads = thread_count(a.width, kVec);
  const int64_t per_block = int64_t{threads} * kVec, parts = (a.width + per_block - 1) / per_block;
  require_launch(parts <= 65535, "embedding_backward", "a row may take 65535 blocks", parts);
  const dim3 grid(grid_size("embedding_backward", a.tokens), static_cast<unsigned>(parts));
  dispatch_activation("embedding_backward", a.accum_dtype, [&]<class Accum>() {
    embedding_backward_kernel<T, Accum, kVec><<<grid, threads, 0, stream>>>(a);
  });
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

void embedding_backward(const EmbeddingBackwardArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.width == 0) return;
  dispatch_activation("embedding_backward", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned = args.width % kVec == 0 && is_aligned_16(args.dy) && is_aligned_16(args.dtable_accum);
    aligned ? launch_backward<T, kVec>(args, stream) : launch_backward<T, 1>(args, stream);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
