#include "kernels/nf4.h"

#include "kernels/cuda_device.cuh"
#include "kernels/nf4_table.h"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kValues = 8;  // of a thread: one 4-byte load; one 16-byte store of bf16, two of fp32
static_assert(kNf4Block % kValues == 0, "a thread's values have one scale");

// The products and the sum are rounded one by one, as on the CPU: a fused one would give other bits.
__device__ __forceinline__ float block_scale(const Nf4DequantizeArgs& a, uint32_t block) {
  const auto run = static_cast<uint32_t>(a.run);
  const int64_t in_tensor = a.first + int64_t{block / run} * a.stride + block % run;
  return __fadd_rn(
      __fmul_rn(__ldg(a.dynamic_map + __ldg(a.scales + block)), __ldg(a.groups + in_tensor / kNf4Group)),
      a.mean);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    nf4_dequantize_kernel(const Nf4DequantizeArgs a, const Nf4Levels levels) {
  // 16 words in 16 banks: lanes that look different codes up do not collide.
  __shared__ float table[kNf4Codes];
  if (threadIdx.x < kNf4Codes) table[threadIdx.x] = levels.value[threadIdx.x];
  __syncthreads();  // the table is complete before anyone reads it
  const int64_t vector = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (vector * kValues >= a.count) return;
  const float scale = block_scale(a, static_cast<uint32_t>(vector / (kNf4Block / kValues)));
  const uint32_t packed = __ldg(reinterpret_cast<const uint32_t*>(a.codes) + vector);
  constexpr int kVec = kVecElements<T>;
  T* out = static_cast<T*>(a.out) + vector * kValues;
#pragma unroll
  for (int first = 0; first < kValues; first += kVec) {
    Vec<T, kVec> values;
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      // Little-endian: value v is in byte v / 2, the even one in its high half.
      const int v = first + i, shift = v / 2 * 8 + (v % 2 == 0 ? 4 : 0);
      values.at[i] = from_float<T>(table[(packed >> shift) & 15u] * scale);
    }
    store(out + first, values);
  }
}

}  // namespace

void nf4_dequantize(const Nf4DequantizeArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  require_launch(args.count % kNf4Block == 0, "nf4_dequantize", "count must be a multiple of 64", args.count);
  require_launch(args.count / kNf4Block <= UINT32_MAX, "nf4_dequantize", "at most 2^32 - 1 blocks",
                 args.count / kNf4Block);
  require_launch(is_aligned_16(args.out), "nf4_dequantize", "out must be 16-byte aligned", 0);
  const unsigned grid = grid_size("nf4_dequantize", (args.count / kValues + kThreads - 1) / kThreads);
  dispatch_activation("nf4_dequantize", args.dtype, [&]<class T>() {
    nf4_dequantize_kernel<T><<<grid, kThreads, 0, stream>>>(args, kNf4Levels);
  });
  HEARTH_CUDA_CHECK(cudaGetLastError());
}

}  // namespace hearth::kernels
