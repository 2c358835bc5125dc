#include "kernels/distillation.h"

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 512;
constexpr float kLowest = -3.402823466e38f;  // -FLT_MAX: unlike -inf, differences of it are never NaN

struct RowTarget {
  bool ignored;
  int64_t column;  // -1: not among the valid columns
};

__device__ __forceinline__ RowTarget row_target(const DistillationArgs& a) {
  const int64_t id = read_id(a.targets, a.targets_dtype == DType::I64, blockIdx.x);
  const int64_t column = id - a.first_id;
  return {id == a.ignore_index, column >= 0 && column < a.valid ? column : -1};
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

// Visits the row's columns [0, limit) in vectors: body(column, value).
template <class T, int kVec, class Body>
__device__ __forceinline__ void for_columns(const T* row, int64_t limit, Body&& body) {
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < limit; c += kThreads * kVec) {
    const auto x = load<T, kVec>(row + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      if (c + i < limit) body(c + i, to_float(x.at[i]));
  }
}

// Maximum first, then the sums: a row of the usual vocabularies stays in the L2 cache between the passes.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) distillation_statistics_kernel(const DistillationArgs a) {
  __shared__ float scratch[kThreads / kWarp];
  const T* student = static_cast<const T*>(a.student) + int64_t{blockIdx.x} * a.student_stride;
  const T* teacher = static_cast<const T*>(a.teacher) + int64_t{blockIdx.x} * a.teacher_stride;
  const RowTarget target = row_target(a);
  float max_s = kLowest, max_t = kLowest;
  for_columns<T, kVec>(student, a.valid, [&](int64_t, float z) { max_s = fmaxf(max_s, z); });
  for_columns<T, kVec>(teacher, a.common, [&](int64_t, float z) { max_t = fmaxf(max_t, z); });
  max_s = block_max(max_s), max_t = block_max(max_t);
  float sum = 0.0f, tempered_s = 0.0f, tempered_t = 0.0f;
  for_columns<T, kVec>(student, a.valid, [&](int64_t c, float z) {
    sum += expf(z - max_s);
    if (c < a.common) tempered_s += expf((z - max_s) * a.inverse_temperature);
  });
  for_columns<T, kVec>(teacher, a.common,
                       [&](int64_t, float z) { tempered_t += expf((z - max_t) * a.inverse_temperature); });
  sum = block_sum<kThreads>(sum, scratch);
  tempered_s = block_sum<kThreads>(tempered_s, scratch);
  tempered_t = block_sum<kThreads>(tempered_t, scratch);
  if (threadIdx.x != 0) return;
  const float minus_infinity = __int_as_float(0xff800000);
  float* out = a.out + int64_t{blockIdx.x} * 6;
  out[0] = a.valid == 0 ? minus_infinity : max_s;
  out[1] = sum;
  out[2] = target.column >= 0 && !target.ignored ? to_float(student[target.column]) : 0.0f;
  out[3] = tempered_s;
  out[4] = a.common == 0 ? minus_infinity : max_t;
  out[5] = tempered_t;
}

// log of the mixture beta t + (1 - beta) s from the two logarithms.
__device__ __forceinline__ float log_mixture(float log_s, float log_t, float beta) {
  const float a = log_t + logf(beta), b = log_s + logf(1.0f - beta);
  const float max = fmaxf(a, b);
  return max + logf(expf(a - max) + expf(b - max));
}

template <class T, int kVec>
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
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < a.common; c += kThreads * kVec) {
    const auto zs = load<T, kVec>(student + c), zt = load<T, kVec>(teacher + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (c + i >= a.common) continue;
      const float log_s = to_float(zs.at[i]) * a.inverse_temperature - lse_s,
                  log_t = to_float(zt.at[i]) * a.inverse_temperature - lse_t;
      if (a.divergence == Divergence::ForwardKl) {
        first += expf(log_t) * (log_t - log_s);
      } else if (a.divergence == Divergence::ReverseKl) {
        second += expf(log_s) * (log_s - log_t);
      } else {
        const float log_m = log_mixture(log_s, log_t, a.beta);
        first += expf(log_t) * (log_t - log_m);
        second += expf(log_s) * (log_s - log_m);
      }
    }
  }
  first = block_sum<kThreads>(first, scratch);
  second = block_sum<kThreads>(second, scratch);
  if (threadIdx.x == 0) out[0] = first, out[1] = second;
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) distillation_gradient_kernel(const DistillationArgs a) {
  T* student = static_cast<T*>(a.student) + int64_t{blockIdx.x} * a.student_stride;
  const T* teacher = static_cast<const T*>(a.teacher) + int64_t{blockIdx.x} * a.teacher_stride;
  const RowTarget target = row_target(a);
  const float* in = a.inputs + int64_t{blockIdx.x} * 4;
  const float lse_s = in[0], lse_t = in[1], divergence = in[2], lse = in[3];
  for (int64_t c = int64_t{threadIdx.x} * kVec; c < a.cols; c += kThreads * kVec) {
    Vec<T, kVec> zs = load<T, kVec>(student + c), zt;
    const bool any_common = c < a.common && a.divergence != Divergence::Given;
    if (any_common) zt = load<T, kVec>(teacher + c);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      float g = 0.0f;
      if (!target.ignored && c + i < a.valid) {
        const float z = to_float(zs.at[i]);
        g = a.cross_entropy_scale * (expf(z - lse) - (c + i == target.column ? 1.0f : 0.0f));
        if (c + i < a.common) {
          const float log_s = z * a.inverse_temperature - lse_s, s = expf(log_s);
          const float log_t = any_common ? to_float(zt.at[i]) * a.inverse_temperature - lse_t : 0.0f;
          float d;
          if (a.divergence == Divergence::Given) {
            d = s * lse_t;
          } else if (a.divergence == Divergence::ForwardKl) {
            d = s - expf(log_t);
          } else if (a.divergence == Divergence::ReverseKl) {
            d = s * (log_s - log_t - divergence);
          } else {
            d = (1.0f - a.beta) * s * (log_s - log_mixture(log_s, log_t, a.beta) - divergence);
          }
          g += a.divergence_scale * d;
        }
      }
      zs.at[i] = from_float<T>(g);
    }
    store(student + c, zs);
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

}  // namespace

void distillation_statistics(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_statistics", args, [&]<class T, int kVec>(unsigned grid) {
    distillation_statistics_kernel<T, kVec><<<grid, kThreads, 0, stream>>>(args);
  });
}

void distillation_sums(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_sums", args, [&]<class T, int kVec>(unsigned grid) {
    distillation_sums_kernel<T, kVec><<<grid, kThreads, 0, stream>>>(args);
  });
}

void distillation_gradient(const DistillationArgs& args, cudaStream_t stream) {
  with_widest_access("distillation_gradient", args, [&]<class T, int kVec>(unsigned grid) {
    distillation_gradient_kernel<T, kVec><<<grid, kThreads, 0, stream>>>(args);
  });
}

}  // namespace hearth::kernels
