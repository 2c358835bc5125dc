#include "kernels/adamw.h"

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 256;
constexpr int64_t kSumBlock = 32768;  // elements per partial sum
constexpr int kFinalThreads = 1024;

__device__ __forceinline__ float approximate_root(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ __forceinline__ float approximate_inverse(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// Operation by operation what torch.optim.AdamW does; the compiler fuses multiply-adds, which only drops
// roundings. kApproximate, for states that are rounded to bf16 anyway: the hardware's root and inverse, 2^-21
// off at most, without which the arithmetic takes longer than the memory does. `correction`: the inverse of
// bias_correction2_sqrt.
template <bool kApproximate>
__device__ __forceinline__ void update(float& master, float grad, float& exp_avg, float& exp_avg_sq,
                                       float decay, const AdamWScalars& s, float correction) {
  master *= decay;
  exp_avg += s.beta1_rest * (grad - exp_avg);
  exp_avg_sq = exp_avg_sq * s.beta2 + s.beta2_rest * grad * grad;
  if constexpr (kApproximate) {
    const float denominator = approximate_root(exp_avg_sq) * correction + s.eps;
    master += s.negative_step_size * exp_avg * approximate_inverse(denominator);
  } else {
    const float denominator = sqrtf(exp_avg_sq) / s.bias_correction2_sqrt + s.eps;
    master += s.negative_step_size * exp_avg / denominator;
  }
}

// Index of the first range that ends after element i. The table is small and stays in the caches.
__device__ __forceinline__ int64_t first_range_after(const AdamWArgs& a, int64_t i) {
  int64_t low = 0, high = a.num_no_decay;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    a.no_decay[2 * middle + 1] > i ? high = middle : low = middle + 1;
  }
  return low;
}

// The factor of element i of a vector that begins at `place` of its group: one of few constants.
template <int kVec>
__device__ __forceinline__ uint32_t factor_of(int place, int i, AdamWState state) {
  if constexpr (kVec == 1) return rounding_factor(place, state);
  if constexpr (kVec == kRoundingGroup) return rounding_factor(i, state);
  static_assert(kVec == 1 || kVec == kRoundingGroup || 2 * kVec == kRoundingGroup);
  return place == 0 ? rounding_factor(i, state) : rounding_factor(kVec + i, state);
}

// Stores the state of kVec elements of one group; bf16 is rounded at random. Without a NaN the sum of bits
// stays below the sign bit, and stochastic_bf16_bits is its upper half.
template <bool kHasNan, class T, int kVec>
__device__ __forceinline__ void store_state(void* to, int64_t begin, const float (&values)[kVec],
                                            uint32_t draw, AdamWState state) {
  if constexpr (sizeof(T) == 4) {
    Vec<T, kVec> out;
#pragma unroll
    for (int i = 0; i < kVec; ++i) out.at[i] = values[i];
    store(static_cast<T*>(to) + begin, out);
  } else {
    const int place = static_cast<int>(begin % kRoundingGroup);
    uint32_t sums[kVec];
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const uint32_t bits = __float_as_uint(values[i]);
      const uint32_t random = rounding_bits(draw, factor_of<kVec>(place, i, state));
      sums[i] = kHasNan ? stochastic_bf16_bits(bits, random) << 16 : bits + random;
    }
    if constexpr (kVec == 1) {
      static_cast<T*>(to)[begin] = __ushort_as_bfloat16(static_cast<unsigned short>(sums[0] >> 16));
    } else {
      Vec<uint32_t, kVec / 2> out;
#pragma unroll
      for (int i = 0; i < kVec; i += 2) out.at[i / 2] = __byte_perm(sums[i], sums[i + 1], 0x7632);
      store(reinterpret_cast<uint32_t*>(static_cast<T*>(to) + begin), out);
    }
  }
}

// Elements [first, first + kVec * vectors), first a multiple of kRoundingGroup unless kVec is 1. kVec = 4, 8
// where every array is bf16, or 1 for unaligned buffers and the last elements.
template <int kVec, class Master, class Grad, class ExpAvg, class ExpAvgSq>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamWArgs a, int64_t first, int64_t vectors) {
  const int64_t vector = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const bool active = vector < vectors;
  const int64_t begin = first + vector * kVec;
  Packed<Master, kVec> master_in;
  Packed<Grad, kVec> grad_in;
  Packed<ExpAvg, kVec> exp_avg_in;
  Packed<ExpAvgSq, kVec> exp_avg_sq_in;
  if (active) {
    master_in = load_packed<Master, kVec>(static_cast<const Master*>(a.master) + begin);
    grad_in = load_packed<Grad, kVec>(static_cast<const Grad*>(a.grad) + begin);
    exp_avg_in = load_packed<ExpAvg, kVec>(static_cast<const ExpAvg*>(a.exp_avg) + begin);
    exp_avg_sq_in = load_packed<ExpAvgSq, kVec>(static_cast<const ExpAvgSq*>(a.exp_avg_sq) + begin);
  }
  // One thread looks for the whole block, while the loads are under way.
  __shared__ int64_t range_of_block;
  int64_t range = 0;
  bool plain_decay = true;  // no range meets the block: nearly always
  if (a.num_no_decay > 0) {
    const int64_t block_begin = begin - int64_t{threadIdx.x} * kVec;
    if (threadIdx.x == 0) range_of_block = first_range_after(a, block_begin);
    __syncthreads();  // thread 0 has written before the block reads
    range = range_of_block;
    plain_decay = range >= a.num_no_decay || a.no_decay[2 * range] >= block_begin + kThreads * kVec;
  }
  if (!active) return;
  const float grad_scale = a.grad_scale ? a.scalars.grad_scale * *a.grad_scale : a.scalars.grad_scale;
  float master[kVec], exp_avg[kVec], exp_avg_sq[kVec];
  constexpr bool kApproximate = sizeof(Master) == 2 && sizeof(ExpAvgSq) == 2;
  const float correction = kApproximate ? approximate_inverse(a.scalars.bias_correction2_sqrt) : 0.0f;
  const auto step = [&](int i, float decay) {
    master[i] = element<Master>(master_in, i);
    exp_avg[i] = element<ExpAvg>(exp_avg_in, i);
    exp_avg_sq[i] = element<ExpAvgSq>(exp_avg_sq_in, i);
    update<kApproximate>(master[i], element<Grad>(grad_in, i) * grad_scale, exp_avg[i], exp_avg_sq[i], decay,
                         a.scalars, correction);
  };
  if (plain_decay) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) step(i, a.scalars.decay);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      while (range < a.num_no_decay && a.no_decay[2 * range + 1] <= begin + i) ++range;
      const bool inside = range < a.num_no_decay && a.no_decay[2 * range] <= begin + i;
      step(i, inside ? 1.0f : a.scalars.decay);
    }
  }
  const uint32_t draw =
      rounding_draw(a.rounding_seed, static_cast<uint64_t>(begin) / kRoundingGroup);  // unused by fp32 states
  const auto store_states = [&]<bool kHasNan>() {
    store_state<kHasNan, Master, kVec>(a.master, begin, master, draw, AdamWState::Master);
    store_state<kHasNan, ExpAvg, kVec>(a.exp_avg, begin, exp_avg, draw, AdamWState::ExpAvg);
    store_state<kHasNan, ExpAvgSq, kVec>(a.exp_avg_sq, begin, exp_avg_sq, draw, AdamWState::ExpAvgSq);
  };
  // A NaN in a moment makes its weight NaN, and a NaN weight the sum.
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += master[i];
  if (sum == sum) {
    store_states.template operator()<false>();
  } else {
    store_states.template operator()<true>();
  }
  if (a.model_param) {
    Vec<Bf16Device, kVec> rounded;
#pragma unroll
    for (int i = 0; i < kVec; ++i) rounded.at[i] = from_float<Bf16Device>(master[i]);
    store(static_cast<Bf16Device*>(a.model_param) + begin, rounded);
  }
}

unsigned blocks_for(int64_t vectors) {
  return grid_size("adamw", (vectors + kThreads - 1) / kThreads);
}

template <int kVec>
void launch(const AdamWArgs& a, int64_t first, int64_t vectors, cudaStream_t stream) {
  if (vectors == 0) return;
  const unsigned grid = blocks_for(vectors);
  dispatch_activation("adamw", a.master_dtype, [&]<class Master>() {
    dispatch_activation("adamw", a.grad_dtype, [&]<class Grad>() {
      dispatch_activation("adamw", a.exp_avg_dtype, [&]<class ExpAvg>() {
        dispatch_activation("adamw", a.exp_avg_sq_dtype, [&]<class ExpAvgSq>() {
          adamw_kernel<kVec, Master, Grad, ExpAvg, ExpAvgSq>
              <<<grid, kThreads, 0, stream>>>(a, first, vectors);
        });
      });
    });
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

// Valid in thread 0 only.
template <int kBlockThreads>
__device__ double block_sum_double(double value) {
  __shared__ double warps[kBlockThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();  // all warps have written before thread 0 adds them
  double sum = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kBlockThreads / kWarp; ++warp) sum += warps[warp];
  return sum;
}

__device__ __forceinline__ double square(float value) {
  return static_cast<double>(value) * value;
}

template <class T, int kVec>
__global__ void __launch_bounds__(kSumThreads) sum_of_squares_kernel(const SumOfSquares a) {
  constexpr int kLoads = 8;  // under way at a time
  constexpr int64_t kStride = kSumThreads * kVec;
  static_assert(kSumBlock % (kLoads * kStride) == 0);
  const T* x = static_cast<const T*>(a.x);
  const int64_t begin = int64_t{blockIdx.x} * kSumBlock, end = begin + kSumBlock;
  double sum = 0;
  if (end <= a.count) {
    for (int64_t i = begin + int64_t{threadIdx.x} * kVec; i < end; i += kLoads * kStride) {
      Packed<T, kVec> in[kLoads];
#pragma unroll
      for (int l = 0; l < kLoads; ++l) in[l] = load_packed<T, kVec>(x + i + l * kStride);
#pragma unroll
      for (int l = 0; l < kLoads; ++l)
#pragma unroll
        for (int j = 0; j < kVec; ++j) sum += square(element<T>(in[l], j));
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < a.count; i += kSumThreads) sum += square(to_float(x[i]));
  }
  sum = block_sum_double<kSumThreads>(sum);
  if (threadIdx.x == 0) a.workspace[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kFinalThreads)
    sum_partials_kernel(const double* partial, int64_t count, double* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kFinalThreads) sum += partial[i];
  sum = block_sum_double<kFinalThreads>(sum);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

void adamw(const AdamWArgs& args, cudaStream_t stream) {
  const bool aligned = is_aligned_16(args.master) && is_aligned_16(args.grad) &&
                       is_aligned_16(args.exp_avg) && is_aligned_16(args.exp_avg_sq) &&
                       reinterpret_cast<uintptr_t>(args.model_param) % 8 == 0;
  const bool all_bf16 = args.master_dtype == DType::BF16 && args.grad_dtype == DType::BF16 &&
                        args.exp_avg_dtype == DType::BF16 && args.exp_avg_sq_dtype == DType::BF16;
  const bool wide = aligned && all_bf16 && args.model_param == nullptr;
  const int64_t in_vectors = wide ? args.count / 8 * 8 : aligned ? args.count / 4 * 4 : 0;
  if (wide && in_vectors > 0) {
    adamw_kernel<8, Bf16Device, Bf16Device, Bf16Device, Bf16Device>
        <<<blocks_for(in_vectors / 8), kThreads, 0, stream>>>(args, 0, in_vectors / 8);
    HEARTH_CUDA_CHECK(cudaGetLastError());
  } else {
    launch<4>(args, 0, in_vectors / 4, stream);
  }
  launch<1>(args, in_vectors, args.count - in_vectors, stream);
}

int64_t sum_of_squares_workspace_doubles(int64_t count) {
  return (count + kSumBlock - 1) / kSumBlock;
}

void sum_of_squares(const SumOfSquares& args, cudaStream_t stream) {
  const int64_t blocks = sum_of_squares_workspace_doubles(args.count);
  if (blocks > 0) {
    const unsigned grid = grid_size("sum_of_squares", blocks);
    dispatch_activation("sum_of_squares", args.dtype, [&]<class T>() {
      if (is_aligned_16(args.x)) {
        sum_of_squares_kernel<T, kVecElements<T>><<<grid, kSumThreads, 0, stream>>>(args);
      } else {
        sum_of_squares_kernel<T, 1><<<grid, kSumThreads, 0, stream>>>(args);
      }
    });
    HEARTH_CUDA_CHECK(cudaGetLastError());
  }
  sum_partials_kernel<<<1, kFinalThreads, 0, stream>>>(args.workspace, blocks, args.out);
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
