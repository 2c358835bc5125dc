// Device-side helpers of the kernels: 16-byte vectors, conversions, and reductions in a fixed order. For .cu
// files only.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "base/dtype.h"
#include "kernels/launch_check.h"

namespace hearth::kernels {

using Bf16Device = __nv_bfloat16;
constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// kCount elements moved by one access when they fill 16 bytes; kCount = 1 is the path for unaligned rows.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vec {
  T at[kCount];
};
template <class T>
constexpr int kVecElements = 16 / sizeof(T);

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(Bf16Device value) {
  return __bfloat162float(value);
}
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ Bf16Device from_float<Bf16Device>(float value) {
  return __float2bfloat16_rn(value);
}

template <class T, int kCount>
__device__ __forceinline__ Vec<T, kCount> load(const T* pointer) {
  return *reinterpret_cast<const Vec<T, kCount>*>(pointer);
}
template <class T, int kCount>
__device__ __forceinline__ void store(T* pointer, const Vec<T, kCount>& value) {
  *reinterpret_cast<Vec<T, kCount>*>(pointer) = value;
}

// 16 bytes as they lie in memory. Of loaded 16-bit elements the compiler makes registers of their own, where
// it can right behind the load, which then waits there.
using Words = Vec<uint32_t, 4>;
// Element i of 16 bytes of T; i is a constant in an unrolled loop. bf16 is the upper half of a float.
template <class T>
__device__ __forceinline__ float element(const Words& words, int i) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(words.at[i]);
  return __uint_as_float(i % 2 ? words.at[i / 2] & 0xffff0000u : words.at[i / 2] << 16);
}
template <class T, int kCount>
__device__ __forceinline__ float element(const Vec<T, kCount>& vec, int i) {
  return to_float(vec.at[i]);
}
// kCount elements of T that are not to be taken apart before they are used; element<T>() reads them.
template <class T, int kCount>
using Packed = std::conditional_t<kCount * sizeof(T) == sizeof(Words), Words, Vec<T, kCount>>;
template <class T, int kCount>
__device__ __forceinline__ Packed<T, kCount> load_packed(const T* pointer) {
  return *reinterpret_cast<const Packed<T, kCount>*>(pointer);
}

// Floats rounded to T. Of elements that differ by path the compiler makes stores of their own; words stay
// together.
template <class T, int kCount>
__device__ __forceinline__ Packed<T, kCount> pack(const float (&values)[kCount]) {
  Packed<T, kCount> out;
  if constexpr (std::is_same_v<decltype(out), Words>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        out.at[i] = __float_as_uint(values[i]);
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
        out.at[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out.at[i] = from_float<T>(values[i]);
  }
  return out;
}
template <class T, int kCount>
__device__ __forceinline__ void store_packed(T* pointer, const Packed<T, kCount>& value) {
  *reinterpret_cast<Packed<T, kCount>*>(pointer) = value;
}

// Copies 16 bytes, both addresses multiples of 16, or fills with zeros and reads nothing; without a register,
// and without waiting. The copies between two commits are a group.
__device__ __forceinline__ void copy_async(Words* shared, const void* global, bool exists = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all of this thread's groups but the newest kNewest are done; other threads' copies take a barrier
// too. "memory", which cuda_pipeline.h's form lacks, keeps reads of the copies behind it where no barrier
// follows.
template <int kNewest>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Sum over groups of kLanes neighbouring lanes (a power of two, at most 32); afterwards every lane holds it.
// All 32 lanes of the warp must take part.
template <int kLanes>
__device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

// Sum over a block of kThreads (a multiple of 32); every thread returns it. `scratch` holds kThreads / 32
// floats. Same order on every call, so the bits repeat.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = lanes_sum<kWarp>(value);
  if constexpr (kThreads == kWarp) return value;
  __syncthreads();  // an earlier reduction's readers are done with scratch
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();  // scratch is complete before anyone reads it
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

constexpr float kLowest = -3.402823466e38f;  // -FLT_MAX: unlike -inf, differences of it are never NaN

// For bf16 logits the hardware's approximate exponential (flushing to zero below 2^-126) is far inside what
// the logits' own rounding makes of the result, and the arithmetic then hides behind the loads.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (sizeof(T) == 2) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504088896341f));
    return result;
  }
  return expf(x);
}

// Calls body(i) for the elements of a vector at column c that lie below `limit`; whole vectors take no
// comparisons.
template <int kVec, class Body>
__device__ __forceinline__ void for_valid(int c, int limit, Body&& body) {
  if (c + kVec <= limit) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) body(i);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      if (c + i < limit) body(i);
  }
}

// Lets `kernel` have that much dynamic shared memory, and asks for as little L1 cache as there can be beside
// it, so that as many blocks fit as the memory allows.
template <class Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  HEARTH_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  HEARTH_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared));
}

// Programmatic dependent launch: a kernel that launch_behind() enqueued may be set up on the device while the
// one before it still runs, from the time that each of that one's blocks has ended or has called
// let_next_kernel_come(). It must not touch what that one writes, nor write what it reads, before
// wait_for_previous_kernel(), which returns when that one has ended and what it wrote is there. Two in a row
// may not be launched so, unless the second touches nothing at all before it has waited.
__device__ __forceinline__ void let_next_kernel_come() {
  cudaTriggerProgrammaticLaunchCompletion();
}
__device__ __forceinline__ void wait_for_previous_kernel() {
  cudaGridDependencySynchronize();
}
template <class... Args>
void launch_behind(void (*kernel)(Args...), dim3 grid, dim3 threads, cudaStream_t stream,
                   const std::type_identity_t<Args>&... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  HEARTH_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}

inline bool is_aligned_16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Calls body.template operator()<T>() with the element type of `dtype`.
template <class Body>
void dispatch_activation(const char* op, DType dtype, Body&& body) {
  if (dtype == DType::F32) return body.template operator()<float>();
  if (dtype != DType::BF16) fail_dtype(op, dtype);
  body.template operator()<Bf16Device>();
}

// Ids arrive as int32 or int64; the branch is uniform over the grid.
__device__ __forceinline__ int64_t read_id(const void* ids, bool is_64_bit, int64_t index) {
  return is_64_bit ? static_cast<const int64_t*>(ids)[index] : static_cast<const int32_t*>(ids)[index];
}

}  // namespace hearth::kernels
