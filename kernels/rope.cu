#include "kernels/rope.h"

#include <limits>

#include "kernels/rope_angles.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 2;  // of a thread: twice the loads in flight, and half the reads of the angles

// A thread has one vector of pairs (elements i.. and i + half..) of two heads of one token: head `slot` and
// the one half of the heads further, query heads first. The vectors of all heads of all tokens are numbered
// through, so that every thread has work whatever their number. Both halves are read before either is
// written, so the output may be the input.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const RopeArgs a, unsigned per_head, unsigned slots, unsigned items) {
  const unsigned item = blockIdx.x * kThreads + threadIdx.x;
  if (item >= items) return;
  const unsigned token = item / (slots * per_head), rest = item - token * slots * per_head;
  const unsigned slot = rest / per_head;
  const int first = static_cast<int>(rest - slot * per_head) * kVec;
  const int64_t half = a.head_dim / 2;
  Packed<T, kVec> x[kHeads], y[kHeads];
  T* out[kHeads];
  bool exists[kHeads];
#pragma unroll
  for (int n = 0; n < kHeads; ++n) {
    exists[n] = n == 0 || slot + n * slots < a.q.heads + a.k.heads;
    const int64_t head = exists[n] ? slot + n * slots : slot;  // twice the same head, then, without a branch
    const bool is_query = head < a.q.heads;
    const RopeTensor& t = is_query ? a.q : a.k;
    const int64_t h = is_query ? head : head - a.q.heads;
    const T* in = static_cast<const T*>(t.in) + token * t.in_token_stride + h * t.in_head_stride + first;
    out[n] = static_cast<T*>(t.out) + token * t.out_token_stride + h * t.out_head_stride + first;
    x[n] = load_packed<T, kVec>(in);
    y[n] = load_packed<T, kVec>(in + half);
  }
  const Angles<kVec> angles = read_angles<kVec>(a.angles, token, half, first, a.sign);
#pragma unroll
  for (int n = 0; n < kHeads; ++n) {
    if (!exists[n]) continue;
    Vec<T, kVec> low, high;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float c = angles.cosine[i], s = angles.sine[i];
      const float u = element<T>(x[n], i), v = element<T>(y[n], i);
      low.at[i] = from_float<T>(u * c - v * s);
      high.at[i] = from_float<T>(v * c + u * s);
    }
    store(out[n], low);
    store(out[n] + half, high);
  }
}

bool vectors_fit(const RopeTensor& x, int64_t elements) {
  return x.in_token_stride % elements == 0 && x.in_head_stride % elements == 0 &&
         x.out_token_stride % elements == 0 && x.out_head_stride % elements == 0 && is_aligned_16(x.in) &&
         is_aligned_16(x.out);
}

template <class T, int kVec>
void launch(const RopeArgs& a, cudaStream_t stream) {
  const int64_t per_head = a.head_dim / 2 / kVec, slots = (a.q.heads + a.k.heads + kHeads - 1) / kHeads;
  const int64_t items = a.tokens * slots * per_head;
  // Numbers of 32 bits, for fast divisions; more would be tensors of 64 GB and more.
  require_launch(items <= std::numeric_limits<int32_t>::max(), "rope", "there may be 2^31 - 1 vectors",
                 items);
  rope_kernel<T, kVec><<<grid_size("rope", (items + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      a, static_cast<unsigned>(per_head), static_cast<unsigned>(slots), static_cast<unsigned>(items));
}

}  // namespace

void rope(const RopeArgs& args, cudaStream_t stream) {
  require_launch(args.head_dim > 0 && args.head_dim % 2 == 0, "rope", "head_dim must be even and > 0",
                 args.head_dim);
  if (args.tokens == 0 || args.q.heads + args.k.heads == 0) return;
  dispatch_activation("rope", args.dtype, [&]<class T>() {
    constexpr int kVec = kVecElements<T>;
    const bool aligned = (args.head_dim / 2) % kVec == 0 && vectors_fit(args.q, kVec) &&
                         vectors_fit(args.k, kVec) && is_aligned_16(args.angles.cosine) &&
                         is_aligned_16(args.angles.sine);
    aligned ? launch<T, kVec>(args, stream) : launch<T, 1>(args, stream);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
