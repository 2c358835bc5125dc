// Random bits by number, for kernels and the CPU loops beside them: a pure function, so any order of elements
// and any split of a tensor gives the same. For whole tensors of initial values see base/rng.h.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HEARTH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HEARTH_HOST_DEVICE inline
#endif

namespace hearth::kernels {

// 64 random bits for draw `number` of the stream `seed` (the finaliser of MurmurHash3, Appleby, over a Weyl
// sequence).
HEARTH_HOST_DEVICE uint64_t counter_bits(uint64_t seed, uint64_t number) {
  uint64_t x = seed + number * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

}  // namespace hearth::kernels
