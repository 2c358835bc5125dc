#include "kernels/rope.h"

#include <algorithm>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kMaxThreads = 256;

// Rotates kVec pairs: elements i.. and i + half.. of one head. Both halves are read before either is written,
// so the output may be the input.
template <class T, int kVec>
__device__ __forceinline__ void rotate(const T* in, T* out, const float* cosine, const float* sine,
                                       int64_t half, float sign, bool valid) {
  const auto a = load<T, kVec>(in), b = load<T, kVec>(in + half);
  Vec<T, kVec> first, second;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float c = valid ? cosine[i] : __int_as_float(0x7fffffff), s = valid ? sign * sine[i] : 0.0f;
    first.at[i] = from_float<T>(to_float(a.at[i]) * c - to_float(b.at[i]) * s);
    second.at[i] = from_float<T>(to_float(b.at[i]) * c + to_float(a.at[i]) * s);
  }
  store(out, first);
  store(out + half, second);
}

// One block per token: its threads walk the vectors of all query heads, then of all key heads, and share the
// token's row of the table through the L1 cache.
template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) rope_kernel(const RopeArgs a) {
  const int64_t token = blockIdx.x, half = a.head_dim / 2;
  const int64_t position = read_id(a.positions, a.positions_dtype == DType::I64, token);
  const bool valid = position >= 0 && position < a.num_positions;
  const float* cosine = a.cosine + (valid ? position * half : 0);
  const float* sine = a.sine + (valid ? position * half : 0);
  const int per_head = static_cast<int>(half / kVec),
            total = static_cast<int>(a.q.heads + a.k.heads) * per_head;
  for (int item = threadIdx.x; item < total; item += blockDim.x) {
    const int head = item / per_head, i = (item - head * per_head) * kVec;
    const bool is_query = head < a.q.heads;
    const RopeTensor& x = is_query ? a.q : a.k;
    const int64_t h = is_query ? head : head - a.q.heads;
    rotate<T, kVec>(static_cast<const T*>(x.in) + token * x.in_token_stride + h * x.in_head_stride + i,
                    static_cast<T*>(x.out) + token * x.out_token_stride + h * x.out_head_stride + i,
                    cosine + i, sine + i, half, a.sign, valid);
  }
}

bool vectors_fit(const RopeTensor& x, int64_t elements) {
  return x.in_token_stride % elements == 0 && x.in_head_stride % elements == 0 &&
         x.out_token_stride % elements == 0 && x.out_head_stride % elements == 0 && is_aligned_16(x.in) &&
         is_aligned_16(x.out);
}

template <class T, int kVec>
void launch(const RopeArgs& a, cudaStream_t stream) {
  const int64_t items = (a.q.heads + a.k.heads) * (a.head_dim / 2 / kVec);
  const int64_t threads = std::clamp<int64_t>((items + kWarp - 1) / kWarp * kWarp, kWarp, kMaxThreads);
  rope_kernel<T, kVec><<<grid_size("rope", a.tokens), static_cast<unsigned>(threads), 0, stream>>>(a);
}

}  // namespace

void rope(const RopeArgs& args, cudaStream_t stream) {
  require_launch(args.head_dim > 0 && args.head_dim % 2 == 0, "rope", "head_dim must be even and > 0",
                 args.head_dim);
  if (args.tokens == 0) return;
  dispatch_activation("rope", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned =
        (args.head_dim / 2) % kVec == 0 && vectors_fit(args.q, kVec) && vectors_fit(args.k, kVec);
    aligned ? launch<T, kVec>(args, stream) : launch<T, 1>(args, stream);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
