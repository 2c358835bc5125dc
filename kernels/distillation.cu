#include "kernels/distillation.h"

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 512;

struct RowTarget {
  bool ignored;
  int column;  // -1: not among the valid columns
};

__device__ __forceinline__ RowTarget row_target(const DistillationArgs& a) {
  const int64_t id = read_id(a.targets, a.targets_dtype == DType::I64, blockIdx.x);
  const int64_t column = id - a.first_id;
  return {id == a.ignore_index, column >= 0 && column < a.valid ? static_cast<int>(column) : -1};
}

// Largest value over the block; every thread returns it.
__device__ float block_max(float value) {
  __shared__ float warps[kThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, offset));
  __syncthreads();  // readers of an earlier call are done
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();  // all warps have written before anyone reads
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) value = fmaxf(value, warps[warp]);
  return value;
}

// Maximum, sum of exp(z - maximum) and the sum of its powers 1 / temperature, of what a thread has seen in
// one pass (online softmax, Milakov & Gimelshein 2018).
struct Tempered {
  float max = kLowest, sum = 0.0f, tempered = 0.0f;
};

template <class T>
__device__ __forceinline__ Tempered rescaled(const Tempered& s, float max, float inverse_temperature) {
  return {max, s.sum * exponential<T>(s.max - max),
          s.tempered * exponential<T>((s.max - max) * inverse_temperature)};
}

// Adds a vector at column c: columns below `valid` to the sum (where kWithSum), those below `common` to the
// other.
template <class T, int kVec, bool kWithSum>
__device__ __forceinline__ void add_vector(Tempered& state, const Packed<T, kVec>& z, int c, int valid,
                                           int common, float inverse_temperature) {
  const int limit = kWithSum ? valid : common;
  float max = state.max;
  for_valid<kVec>(c, limit, [&](int i) { max = fmaxf(max, element<T>(z, i)); });
  if (max > state.max) state = rescaled<T>(state, max, inverse_temperature);
  if constexpr (kWithSum)
    for_valid<kVec>(c, valid, [&](int i) { state.sum += exponential<T>(element<T>(z, i) - max); });
  for_valid<kVec>(c, common, [&](int i) {
    state.tempered += exponential<T>((element<T>(z, i) - max) * inverse_temperature);
  });
}

// Over the block; every thread returns it.
template <class T>
__device__ Tempered block_total(const Tempered& state, float inverse_temperature, float* scratch) {
  const Tempered own = rescaled<T>(state, block_max(state.max), inverse_temperature);
  return {own.max, block_sum<kThreads>(own.sum, scratch), block_sum<kThreads>(own.tempered, scratch)};
}

// Reads both rows once.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) distillation_statistics_kernel(const DistillationArgs a) {
  __shared__ float scratch[kThreads / kWarp];
  const T* student = static_cast<const T*>(a.student) + int64_t{blockIdx.x} * a.student_stride;
  const T* teacher = static_cast<const T*>(a.teacher) + int64_t{blockIdx.x} * a.teacher_stride;
  const RowTarget target = row_target(a);
  const int valid = static_cast<int>(a.valid), common = static_cast<int>(a.common);
  Tempered s, t;
#pragma unroll 2
  for (int c = static_cast<int>(threadIdx.x) * kVec; c < valid; c += kThreads * kVec) {
    const auto zs = load_packed<T, kVec>(student + c);
    Packed<T, kVec> zt = {};
    if (c < common) zt = load_packed<T, kVec>(teacher + c);
    add_vector<T, kVec, true>(s, zs, c, valid, common, a.inverse_temperature);
    add_vector<T, kVec, false>(t, zt, c, valid, common, a.inverse_temperature);
  }
  s = block_total<T>(s, a.inverse_temperature, scratch);
  t = block_total<T>(t, a.inverse_temperature, scratch);
  if (threadIdx.x != 0) return;
  const float minus_infinity = __int_as_float(0xff800000);
  float* out = a.out + int64_t{blockIdx.x} * 6;
  out[0] = a.valid == 0 ? minus_infinity : s.max;
  out[1] = s.sum;
  out[2] = target.column >= 0 && !target.ignored ? to_float(student[target.column]) : 0.0f;
  out[3] = s.tempered;
  out[4] = a.common == 0 ? minus_infinity : t.max;
  out[5] = t.tempered;
}

// log of the mixture beta t + (1 - beta) s from the two logarithms.
template <class T>
__device__ __forceinline__ float log_mixture(float log_s, float log_t, float beta) {
  const float a = log_t + logf(beta), b = log_s + logf(1.0f - beta);
  const float max = fmaxf(a, b), sum = exponential<T>(a - max) + exponential<T>(b - max);
  return max + (sizeof(T) == 2 ? __logf(sum) : logf(sum));
}

template <class T, int kVec, Divergence kDivergence>
__global__ void __launch_bounds__(kThreads) distillation_sums_kernel(const DistillationArgs a) {
  __shared__ float scratch[kThreads / kWarp];
  const T* student = static_cast<const T*>(a.student) + int64_t{blockIdx.x} * a.student_stride;
  const T* teacher = static_cast<const T*>(a.teacher) + int64_t{blockIdx.x} * a.teacher_stride;
  float* out = a.out + int64_t{blockIdx.x} * 2;
  if (row_target(a).ignored) {
    if (threadIdx.x < 2) out[threadIdx.x] = 0.0f;
    return;
  }
  const float lse_s = a.inputs[int64_t{blockIdx.x} * 2], lse_t = a.inputs[int64_t{blockIdx.x} * 2 + 1];
  float first = 0.0f, second = 0.0f;
  const int common = static_cast<int>(a.common);
#pragma unroll 2
  for (int c = static_cast<int>(threadIdx.x) * kVec; c < common; c += kThreads * kVec) {
    const auto zs = load_packed<T, kVec>(student + c), zt = load_packed<T, kVec>(teacher + c);
    for_valid<kVec>(c, common, [&](int i) {
      const float log_s = element<T>(zs, i) * a.inverse_temperature - lse_s,
                  log_t = element<T>(zt, i) * a.inverse_temperature - lse_t;
      if constexpr (kDivergence == Divergence::ForwardKl) {
        first += exponential<T>(log_t) * (log_t - log_s);
      } else if constexpr (kDivergence == Divergence::ReverseKl) {
        second += exponential<T>(log_s) * (log_s - log_t);
      } else {
        const float log_m = log_mixture<T>(log_s, log_t, a.beta);
        first += exponential<T>(log_t) * (log_t - log_m);
        second += exponential<T>(log_s) * (log_s - log_m);
      }
    });
  }
  first = block_sum<kThreads>(first, scratch);
  second = block_sum<kThreads>(second, scratch);
  if (threadIdx.x == 0) out[0] = first, out[1] = second;
}

template <class T, int kVec, Divergence kDivergence>
__global__ void __launch_bounds__(kThreads) distillation_gradient_kernel(const DistillationArgs a) {
  T* student = static_cast<T*>(a.student) + int64_t{blockIdx.x} * a.student_stride;
  const T* teacher = static_cast<const T*>(a.teacher) + int64_t{blockIdx.x} * a.teacher_stride;
  const RowTarget target = row_target(a);
  const float* in = a.inputs + int64_t{blockIdx.x} * 4;
  const float lse_s = in[0], lse_t = in[1], divergence = in[2], lse = in[3];
  const int valid = static_cast<int>(a.valid), common = static_cast<int>(a.common);
  const auto of_loss = [&](float z) { return a.cross_entropy_scale * exponential<T>(z - lse); };
  const auto of_divergence = [&](float z, float z_teacher) {
    const float log_s = z * a.inverse_temperature - lse_s, s = exponential<T>(log_s);
    if constexpr (kDivergence == Divergence::Given) return a.divergence_scale * (s * lse_t);
    const float log_t = z_teacher * a.inverse_temperature - lse_t;
    float d;
    if constexpr (kDivergence == Divergence::ForwardKl) {
      d = s - exponential<T>(log_t);
    } else if constexpr (kDivergence == Divergence::ReverseKl) {
      d = s * (log_s - log_t - divergence);
    } else {
      d = (1.0f - a.beta) * s * (log_s - log_mixture<T>(log_s, log_t, a.beta) - divergence);
    }
    return a.divergence_scale * d;
  };
  for (int c = static_cast<int>(threadIdx.x) * kVec; c < static_cast<int>(a.cols); c += kThreads * kVec) {
    const auto zs = load_packed<T, kVec>(student + c);
    Packed<T, kVec> zt = {};
    if (c < common && kDivergence != Divergence::Given) zt = load_packed<T, kVec>(teacher + c);
    float g[kVec] = {};
    if (!target.ignored) {
      for_valid<kVec>(c, valid, [&](int i) { g[i] = of_loss(element<T>(zs, i)); });
      for_valid<kVec>(c, common, [&](int i) { g[i] += of_divergence(element<T>(zs, i), element<T>(zt, i)); });
    }
    const int to_target = target.ignored ? -1 : target.column - c;  // negative without a column
    Vec<T, kVec> out;
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      out.at[i] = from_float<T>(i == to_target ? g[i] - a.cross_entropy_scale : g[i]);
    store(student + c, out);
  }
}

// Teacher rows are read whole vectors at a time up to `common`, so both rows must hold them.
template <class T>
bool is_aligned(const DistillationArgs& a) {
  constexpr int kVec = kVecElements<T>;
  return a.cols % kVec == 0 && a.student_stride % kVec == 0 && a.teacher_stride % kVec == 0 &&
         (a.common + kVec - 1) / kVec * kVec <= a.teacher_stride && is_aligned_16(a.student) &&
         is_aligned_16(a.teacher);
}

unsigned checked_grid(const char* op, const DistillationArgs& a) {
  // Columns are counted in 32 bits, with room for one sweep of the block beyond the last.
  require_launch(a.cols <= (int64_t{1} << 30), op, "cols must be at most 2^30", a.cols);
  require_launch(a.valid >= 0 && a.valid <= a.cols, op, "valid must be in [0, cols]", a.valid);
  require_launch(a.common >= 0 && a.common <= a.valid, op, "common must be in [0, valid]", a.common);
  require_launch(a.student_stride >= a.cols, op, "student_stride must be at least cols", a.student_stride);
  require_launch(a.teacher_stride >= a.common, op, "teacher_stride must be at least common",
                 a.teacher_stride);
  return grid_size(op, a.rows);
}

// Calls launch<T, kVec>(grid) with accesses as wide as the rows allow.
template <class Launch>
void with_widest_access(const char* op, const DistillationArgs& args, Launch&& launch) {
  if (args.rows == 0) return;
  const unsigned grid = checked_grid(op, args);
  dispatch_activation(op, args.dtype, [&]<class T>() {
    if (is_aligned<T>(args)) {
      launch.template operator()<T, kVecElements<T>>(grid);
    } else {
      launch.template operator()<T, 1>(grid);
    }
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

// Calls body<divergence>().
template <class Body>
void with_divergence(const DistillationArgs& args, Body&& body) {
  switch (args.divergence) {
    case Divergence::ForwardKl:
      return body.template operator()<Divergence::ForwardKl>();
    case Divergence::ReverseKl:
      return body.template operator()<Divergence::ReverseKl>();
    case Divergence::Given:
      return body.template operator()<Divergence::Given>();
    default:
      return body.template operator()<Divergence::Jsd>();
  }
}

}  // namespace

void distillation_statistics(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_statistics", args, [&]<class T, int kVec>(unsigned grid) {
    distillation_statistics_kernel<T, kVec><<<grid, kThreads, 0, stream>>>(args);
  });
}

void distillation_sums(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_sums", args, [&]<class T, int kVec>(unsigned grid) {
    with_divergence(args, [&]<Divergence kDivergence>() {
      distillation_sums_kernel<T, kVec, kDivergence><<<grid, kThreads, 0, stream>>>(args);
    });
  });
}

void distillation_gradient(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_gradient", args, [&]<class T, int kVec>(unsigned grid) {
    with_divergence(args, [&]<Divergence kDivergence>() {
      distillation_gradient_kernel<T, kVec, kDivergence><<<grid, kThreads, 0, stream>>>(args);
    });
  });
}

}  // namespace hearth::kernels
