#include "kernels/head_norm_rope.h"

#include <algorithm>

#include "kernels/column_sum.h"
#include "kernels/rope_angles.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;   // of a token, that one group of lanes of the forward takes
constexpr int kStages = 3;  // of the backward's ring: this row and two to come
constexpr int64_t kBlocks =
    3 * 132;                 // of the backward: three on an SM of an H100; fixed, so that bits repeat
constexpr int kTensors = 4;  // of the ring: x and dy, both halves
constexpr int64_t kMaxRows = int64_t{1} << 30;  // rows are numbered in 32 bits

struct Place {
  int token, head;
};
__device__ __forceinline__ Place place_of(int row, int64_t heads) {
  const int token = row / static_cast<int>(heads);
  return {token, row - token * static_cast<int>(heads)};
}

struct Head {
  const HeadNormRopeTensor& tensor;
  int64_t number;
};
// The heads of q and k are numbered through. (Branches instead would have the compiler copy the arguments to
// local memory.)
__device__ __forceinline__ Head head_of(const HeadNormRopeArgs& a, int number) {
  const bool is_query = number < a.q.heads;
  return {is_query ? a.q : a.k, is_query ? number : number - a.q.heads};
}

// A head belongs to kLanes neighbouring lanes, each with one vector of its lower half and the one of the
// upper half that it is rotated with. They take kHeads heads of a token in turn, which share its angles
// (twice the bytes of a head); all are loaded first.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    head_norm_rope_forward_kernel(const HeadNormRopeArgs a, int groups) {
  constexpr int kVec = kVecElements<T>, kHalf = kLanes * kVec;
  const int heads = static_cast<int>(a.q.heads + a.k.heads), groups_of_token = (heads + kHeads - 1) / kHeads;
  const int64_t number = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const bool active = number < groups;  // idle threads stay for the reductions
  const auto [token, place] = place_of(active ? static_cast<int>(number) : 0, groups_of_token);
  const int first = place * kHeads, count = active ? min(kHeads, heads - first) : 0;
  const int c = static_cast<int>(threadIdx.x) % kLanes * kVec;
  Words low[kHeads], high[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    low[h] = high[h] = Words{};
    if (h >= count) continue;
    const auto [t, head] = head_of(a, first + h);
    const T* in = static_cast<const T*>(t.x.data) + token * t.x.token_stride + head * t.x.head_stride + c;
    low[h] = load_packed<T, kVec>(in);
    high[h] = load_packed<T, kVec>(in + kHalf);
  }
  const Angles<kVec> angles = read_angles<kVec>(a.angles, token, kHalf, c, 1.0f);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(low[h], i), v = element<T>(high[h], i);
      sum += u * u;
      sum += v * v;
    }
    const float rstd = rsqrtf(lanes_sum<kLanes>(sum) / static_cast<float>(2 * kHalf) + a.eps);
    if (h >= count) continue;
    const auto [t, head] = head_of(a, first + h);
    if (c == 0) t.rstd[token * t.heads + head] = rstd;
    const T* weight = static_cast<const T*>(t.weight) + c;
    const auto w_low = load_packed<T, kVec>(weight), w_high = load_packed<T, kVec>(weight + kHalf);
    Vec<T, kVec> out_low, out_high;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(low[h], i) * rstd * element<T>(w_low, i);
      const float v = element<T>(high[h], i) * rstd * element<T>(w_high, i);
      out_low.at[i] = from_float<T>(u * angles.cosine[i] - v * angles.sine[i]);
      out_high.at[i] = from_float<T>(v * angles.cosine[i] + u * angles.sine[i]);
    }
    T* out = static_cast<T*>(t.out) + token * t.out_token_stride + head * t.out_head_stride + c;
    store(out, out_low);
    store(out + kHalf, out_high);
  }
}

// The first q_blocks blocks take q's rows, the others k's; a block's threads keep their columns and so their
// sums of weight gradients. Rows to come are copied into a ring in shared memory,
// [kStages][kTensors][kThreads] of 16 bytes, where each thread reads its own copies only.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 3)
    head_norm_rope_backward_kernel(const HeadNormRopeArgs a, int q_blocks) {
  constexpr int kVec = kVecElements<T>, kHalf = kLanes * kVec, kRows = kThreads / kLanes;
  extern __shared__ Words ring[];
  __shared__ float sums[kRows][2 * kHalf];
  const bool is_query = static_cast<int>(blockIdx.x) < q_blocks;
  const HeadNormRopeTensor& t = is_query ? a.q : a.k;
  const int block = static_cast<int>(blockIdx.x) - (is_query ? 0 : q_blocks);
  const int blocks = is_query ? q_blocks : static_cast<int>(gridDim.x) - q_blocks;
  const int rows = static_cast<int>(a.tokens * t.heads), step = blocks * kRows;
  const int group = static_cast<int>(threadIdx.x) / kLanes, c = static_cast<int>(threadIdx.x) % kLanes * kVec;
  const auto slot = [&](int stage, int tensor) -> Words& {
    return ring[(stage * kTensors + tensor) * kThreads + threadIdx.x];
  };
  const auto fetch = [&](int row, int stage) {  // zeros where the rows end
    const bool exists = row < rows;
    const auto [token, head] = place_of(exists ? row : 0, t.heads);
    const T* x = static_cast<const T*>(t.x.data) + token * t.x.token_stride + head * t.x.head_stride + c;
    const T* dy = static_cast<const T*>(t.dy.data) + token * t.dy.token_stride + head * t.dy.head_stride + c;
    copy_async(&slot(stage, 0), x, exists);
    copy_async(&slot(stage, 1), x + kHalf, exists);
    copy_async(&slot(stage, 2), dy, exists);
    copy_async(&slot(stage, 3), dy + kHalf, exists);
    copy_async_commit();
  };
  // The weights too: as registers the compiler would keep them unpacked, and has not as many.
  const T* weight = static_cast<const T*>(t.weight) + c;
  slot(kStages, 0) = load_packed<T, kVec>(weight);
  slot(kStages, 1) = load_packed<T, kVec>(weight + kHalf);
  float acc_low[kVec] = {}, acc_high[kVec] = {};
  int first = block * kRows, stage = 0;
  for (int ahead = 0; ahead + 1 < kStages; ++ahead) fetch(first + group + ahead * step, ahead);
  // Whole blocks go round, so that the groups that share a warp shuffle together.
  for (; first < rows; first += step, stage = stage + 1 < kStages ? stage + 1 : 0) {
    const int row = first + group;
    const bool active = row < rows;
    // Into the slots that the row before this one had.
    fetch(row + (kStages - 1) * step, stage > 0 ? stage - 1 : kStages - 1);
    const auto [token, head] = place_of(active ? row : 0, t.heads);
    const Angles<kVec> angles = read_angles<kVec>(a.angles, token, kHalf, c, -1.0f);
    const float rstd = active ? t.rstd[row] : 0.0f;
    copy_async_wait<kStages - 1>();               // this row's copies are done, the later rows' may not be
    float g_low[kVec], g_high[kVec], dot = 0.0f;  // the gradient of the norm's output
    const Words x_low = slot(stage, 0), x_high = slot(stage, 1);
    const Words dy_low = slot(stage, 2), dy_high = slot(stage, 3);
    const Words w_low = slot(kStages, 0), w_high = slot(kStages, 1);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(dy_low, i), v = element<T>(dy_high, i);
      g_low[i] = u * angles.cosine[i] - v * angles.sine[i];
      g_high[i] = v * angles.cosine[i] + u * angles.sine[i];
      dot += g_low[i] * element<T>(w_low, i) * element<T>(x_low, i);
      dot += g_high[i] * element<T>(w_high, i) * element<T>(x_high, i);
    }
    const float coefficient = lanes_sum<kLanes>(dot) / static_cast<float>(2 * kHalf) * rstd * rstd;
    if (!active) continue;
    Vec<T, kVec> dx_low, dx_high;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(x_low, i), v = element<T>(x_high, i);
      acc_low[i] += g_low[i] * (u * rstd);
      acc_high[i] += g_high[i] * (v * rstd);
      dx_low.at[i] = from_float<T>(rstd * (g_low[i] * element<T>(w_low, i) - u * coefficient));
      dx_high.at[i] = from_float<T>(rstd * (g_high[i] * element<T>(w_high, i) - v * coefficient));
    }
    T* out = static_cast<T*>(t.out) + token * t.out_token_stride + head * t.out_head_stride + c;
    store(out, dx_low);
    store(out + kHalf, dx_high);
  }
  let_next_kernel_come();
  if (!t.dw_accum) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    sums[group][c + i] = acc_low[i];
    sums[group][kHalf + c + i] = acc_high[i];
  }
  __syncthreads();  // every group has written before the columns are added
  for (int column = static_cast<int>(threadIdx.x); column < 2 * kHalf; column += kThreads) {
    float sum = 0.0f;
    for (int g = 0; g < kRows; ++g) sum += sums[g][column];
    a.workspace[blockIdx.x * (2 * kHalf) + column] = sum;
  }
}

// Calls body<T, kLanes>() for the lanes of a head; false where there is no kernel for it.
template <class Body>
bool with_lanes(const HeadNormRopeArgs& a, Body&& body) {
  bool found = true;
  dispatch_activation("head_norm_rope", a.dtype, [&]<class T>() {
    const int64_t per_lane = 2 * kVecElements<T>;
    if (a.head_dim == 4 * per_lane) return body.template operator()<T, 4>();
    if (a.head_dim == 8 * per_lane) return body.template operator()<T, 8>();
    if (a.head_dim == 16 * per_lane) return body.template operator()<T, 16>();
    if (a.head_dim == 32 * per_lane) return body.template operator()<T, 32>();
    found = false;
  });
  return found;
}

bool is_aligned(const HeadNormRopeTensor& t, int64_t elements) {
  const auto fits = [&](const void* data, int64_t token_stride, int64_t head_stride) {
    return is_aligned_16(data) && token_stride % elements == 0 && head_stride % elements == 0;
  };
  return fits(t.x.data, t.x.token_stride, t.x.head_stride) && is_aligned_16(t.weight) &&
         fits(t.dy.data, t.dy.token_stride, t.dy.head_stride) &&
         fits(t.out, t.out_token_stride, t.out_head_stride);
}

void check(const HeadNormRopeArgs& args) {
  require_launch(head_norm_rope_fits(args), "head_norm_rope", "no kernel for this head_dim or alignment",
                 args.head_dim);
}

}  // namespace

bool head_norm_rope_fits(const HeadNormRopeArgs& args) {
  return with_lanes(args, [&]<class T, int kLanes>() {}) &&
         is_aligned(args.q, args.dtype == DType::F32 ? 4 : 8) &&
         is_aligned(args.k, args.dtype == DType::F32 ? 4 : 8) && is_aligned_16(args.angles.cosine) &&
         is_aligned_16(args.angles.sine) && args.q.heads > 0 && args.k.heads > 0 &&
         args.tokens * (args.q.heads + args.k.heads) < kMaxRows;
}

void head_norm_rope_forward(const HeadNormRopeArgs& args, cudaStream_t stream) {
  check(args);
  if (args.tokens == 0) return;
  const int64_t groups = args.tokens * ((args.q.heads + args.k.heads + kHeads - 1) / kHeads);
  with_lanes(args, [&]<class T, int kLanes>() {
    const unsigned grid = grid_size("head_norm_rope", (groups * kLanes + kThreads - 1) / kThreads);
    head_norm_rope_forward_kernel<T, kLanes><<<grid, kThreads, 0, stream>>>(args, static_cast<int>(groups));
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

int64_t head_norm_rope_workspace_floats(int64_t head_dim) {
  return kBlocks * head_dim;
}

void head_norm_rope_backward(const HeadNormRopeArgs& args, cudaStream_t stream) {
  check(args);
  if (args.tokens == 0) return;
  with_lanes(args, [&]<class T, int kLanes>() {
    constexpr int64_t kRows = kThreads / kLanes;
    const auto tiles = [&](const HeadNormRopeTensor& t) {
      return (args.tokens * t.heads + kRows - 1) / kRows;
    };
    const int64_t share =
        std::clamp<int64_t>(kBlocks * args.q.heads / (args.q.heads + args.k.heads), 1, kBlocks - 1);
    const int64_t q_blocks = std::min(share, tiles(args.q)),
                  k_blocks = std::min(kBlocks - share, tiles(args.k));
    constexpr int kRingBytes = (kStages * kTensors + 2) * kThreads * int{sizeof(Words)};
    const auto kernel = head_norm_rope_backward_kernel<T, kLanes>;
    allow_shared_memory(kernel, kRingBytes);
    kernel<<<grid_size("head_norm_rope", q_blocks + k_blocks), kThreads, kRingBytes, stream>>>(
        args, static_cast<int>(q_blocks));
    HEARTH_CUDA_CHECK(cudaGetLastError());
    const AddPartialRows of_q{args.workspace, args.q.dw_accum, q_blocks, args.head_dim, args.q.dw_dtype};
    const AddPartialRows of_k{args.workspace + q_blocks * args.head_dim, args.k.dw_accum, k_blocks,
                              args.head_dim, args.k.dw_dtype};
    if (args.q.dw_accum && args.k.dw_accum) {
      add_partial_rows(of_q, of_k, stream);
    } else if (args.q.dw_accum || args.k.dw_accum) {
      add_partial_rows(args.q.dw_accum ? of_q : of_k, stream);
    }
  });
}

}  // namespace hearth::kernels
