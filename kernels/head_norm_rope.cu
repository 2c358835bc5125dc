#include "kernels/head_norm_rope.h"

#include <algorithm>

#include "kernels/column_sum.h"
#include "kernels/rope_angles.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kStages = 3;                                // of the rings: this row and those to come
constexpr int kForwardTensors = 2, kBackwardTensors = 4;  // of a ring: both halves of x, and of dy
// Blocks of the forward and of the backward on an SM of an H100; the backward's are fixed, so that bits
// repeat.
constexpr int kForwardBlocks = 5, kBackwardBlocks = 3;
constexpr int64_t kSms = 132;
constexpr int64_t kMaxRows = int64_t{1} << 30;  // rows are numbered in 32 bits

// What a block works on: the first q_blocks blocks take q's rows, the others k's. A head belongs to kLanes
// neighbouring lanes, each with one vector of its lower half and the one of the upper half that it is rotated
// with; these keep their columns, and so their weights. Rows to come are copied into a ring in shared memory,
// [stages][tensors][kThreads] of 16 bytes, where each thread reads its own copies only, and behind it the
// weights: as registers the compiler would keep them unpacked, and has not as many.
template <class T, int kLanes, int kTensors>
struct BlockRows {
  static constexpr int kVec = kVecElements<T>, kHalf = kLanes * kVec, kRows = kThreads / kLanes;
  const HeadNormRopeTensor& t;
  Words* ring;
  int rows, first, step, group, column;
  __device__ BlockRows(const HeadNormRopeArgs& a, int q_blocks, Words* shared)
      : BlockRows(a, q_blocks, shared, static_cast<int>(blockIdx.x) < q_blocks) {}

  struct Place {
    int token, head;
  };
  __device__ Place place_of(int row) const {
    const int heads = static_cast<int>(t.heads), token = row / heads;
    return {token, row - token * heads};
  }
  // Stage kStages holds the weights.
  __device__ Words& slot(int stage, int tensor) const {
    return ring[(stage * kTensors + tensor) * kThreads + threadIdx.x];
  }
  __device__ void keep_weights() const {
    const T* weight = static_cast<const T*>(t.weight) + column;
    slot(kStages, 0) = load_packed<T, kVec>(weight);
    slot(kStages, 1) = load_packed<T, kVec>(weight + kHalf);
  }
  // Both halves of a row of `from`, to two tensors of a stage; zeros where the rows end.
  __device__ void copy(const HeadsOf& from, int row, int stage, int tensor) const {
    const bool exists = row < rows;
    const auto [token, head] = place_of(exists ? row : 0);
    const T* x =
        static_cast<const T*>(from.data) + token * from.token_stride + head * from.head_stride + column;
    copy_async(&slot(stage, tensor), x, exists);
    copy_async(&slot(stage, tensor + 1), x + kHalf, exists);
  }

 private:
  __device__ BlockRows(const HeadNormRopeArgs& a, int q_blocks, Words* shared, bool is_query)
      : t(is_query ? a.q : a.k),
        ring(shared),
        rows(static_cast<int>(a.tokens * t.heads)),
        first((static_cast<int>(blockIdx.x) - (is_query ? 0 : q_blocks)) * kRows),
        step((is_query ? q_blocks : static_cast<int>(gridDim.x) - q_blocks) * kRows),
        group(static_cast<int>(threadIdx.x) / kLanes),
        column(static_cast<int>(threadIdx.x) % kLanes * kVec) {}
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    head_norm_rope_forward_kernel(const HeadNormRopeArgs a, int q_blocks) {
  using Rows = BlockRows<T, kLanes, kForwardTensors>;
  constexpr int kVec = Rows::kVec, kHalf = Rows::kHalf;
  extern __shared__ Words ring[];
  const Rows b(a, q_blocks, ring);
  const HeadNormRopeTensor& t = b.t;
  const int c = b.column;
  const auto fetch = [&](int row, int stage) {
    b.copy(t.x, row, stage, 0);
    copy_async_commit();
  };
  b.keep_weights();
  for (int ahead = 0; ahead + 1 < kStages; ++ahead) fetch(b.first + b.group + ahead * b.step, ahead);
  int stage = 0;
  // Whole blocks go round, so that the groups that share a warp shuffle together.
  for (int first = b.first; first < b.rows; first += b.step, stage = stage + 1 < kStages ? stage + 1 : 0) {
    const int row = first + b.group;
    const bool active = row < b.rows;
    // Into the slots that the row before this one had.
    fetch(row + (kStages - 1) * b.step, stage > 0 ? stage - 1 : kStages - 1);
    const auto [token, head] = b.place_of(active ? row : 0);
    const Angles<kVec> angles = read_angles<kVec>(a.angles, token, kHalf, c, 1.0f);
    copy_async_wait<kStages - 1>();  // this row's copies are done, the later rows' may not be
    const Words low = b.slot(stage, 0), high = b.slot(stage, 1);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(low, i), v = element<T>(high, i);
      sum += u * u;
      sum += v * v;
    }
    const float rstd = rsqrtf(lanes_sum<kLanes>(sum) / static_cast<float>(2 * kHalf) + a.eps);
    if (!active) continue;
    if (c == 0) t.rstd[row] = rstd;
    const Words w_low = b.slot(kStages, 0), w_high = b.slot(kStages, 1);
    Vec<T, kVec> out_low, out_high;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const float u = element<T>(low, i) * rstd * element<T>(w_low, i);
      const float v = element<T>(high, i) * rstd * element<T>(w_high, i);
      out_low.at[i] = from_float<T>(u * angles.cosine[i] - v * angles.sine[i]);
      out_high.at[i] = from_float<T>(v * angles.cosine[i] + u * angles.sine[i]);
    }
    T* out = static_cast<T*>(t.out) + token * t.out_token_stride + head * t.out_head_stride + c;
    store(out, out_low);
    store(out + kHalf, out_high);
  }
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    head_norm_rope_backward_kernel(const HeadNormRopeArgs a, int q_blocks) {
  using Rows = BlockRows<T, kLanes, kBackwardTensors>;
  constexpr int kVec = Rows::kVec, kHalf = Rows::kHalf, kRows = Rows::kRows;
  extern __shared__ Words ring[];
  __shared__ float sums[kRows][2 * kHalf];
  const Rows b(a, q_blocks, ring);
  const HeadNormRopeTensor& t = b.t;
  const int c = b.column;
  const auto fetch = [&](int row, int stage) {
    b.copy(t.x, row, stage, 0);
    b.copy(t.dy, row, stage, 2);
    copy_async_commit();
  };
  b.keep_weights();
  float acc_low[kVec] = {}, acc_high[kVec] = {};
  for (int ahead = 0; ahead + 1 < kStages; ++ahead) fetch(b.first + b.group + ahead * b.step, ahead);
  int stage = 0;
  // Whole blocks go round, so that the groups that share a warp shuffle together.
  for (int first = b.first; first < b.rows; first += b.step, stage = stage + 1 < kStages ? stage + 1 : 0) {
    const int row = first + b.group;
    const bool active = row < b.rows;
    // Into the slots that the row before this one had.
    fetch(row + (kStages - 1) * b.step, stage > 0 ? stage - 1 : kStages - 1);
    const auto [token, head] = b.place_of(active ? row : 0);
    const Angles<kVec> angles = read_angles<kVec>(a.angles, token, kHalf, c, -1.0f);
    const float rstd = active ? t.rstd[row] : 0.0f;
    copy_async_wait<kStages - 1>();               // this row's copies are done, the later rows' may not be
    float g_low[kVec], g_high[kVec], dot = 0.0f;  // the gradient of the norm's output
    const Words x_low = b.slot(stage, 0), x_high = b.slot(stage, 1);
    const Words dy_low = b.slot(stage, 2), dy_high = b.slot(stage, 3);
    const Words w_low = b.slot(kStages, 0), w_high = b.slot(kStages, 1);
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
    sums[b.group][c + i] = acc_low[i];
    sums[b.group][kHalf + c + i] = acc_high[i];
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

struct Blocks {
  int64_t of_q, of_k;
};
// Up to `blocks` of them, shared by the heads; none is without a row.
template <class T, int kLanes>
Blocks split_blocks(const HeadNormRopeArgs& a, int64_t blocks) {
  constexpr int64_t kRows = kThreads / kLanes;
  const auto tiles = [&](const HeadNormRopeTensor& t) { return (a.tokens * t.heads + kRows - 1) / kRows; };
  const int64_t share = std::clamp<int64_t>(blocks * a.q.heads / (a.q.heads + a.k.heads), 1, blocks - 1);
  return {std::min(share, tiles(a.q)), std::min(blocks - share, tiles(a.k))};
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
  with_lanes(args, [&]<class T, int kLanes>() {
    const auto [q_blocks, k_blocks] = split_blocks<T, kLanes>(args, kForwardBlocks * kSms);
    constexpr int kRingBytes = (kStages * kForwardTensors + 2) * kThreads * int{sizeof(Words)};
    const auto kernel = head_norm_rope_forward_kernel<T, kLanes>;
    allow_shared_memory(kernel, kRingBytes);
    kernel<<<grid_size("head_norm_rope", q_blocks + k_blocks), kThreads, kRingBytes, stream>>>(
        args, static_cast<int>(q_blocks));
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

int64_t head_norm_rope_workspace_floats(int64_t head_dim) {
  return kBackwardBlocks * kSms * head_dim;
}

void head_norm_rope_backward(const HeadNormRopeArgs& args, cudaStream_t stream) {
  check(args);
  if (args.tokens == 0) return;
  with_lanes(args, [&]<class T, int kLanes>() {
    const auto [q_blocks, k_blocks] = split_blocks<T, kLanes>(args, kBackwardBlocks * kSms);
    constexpr int kRingBytes = (kStages * kBackwardTensors + 2) * kThreads * int{sizeof(Words)};
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
