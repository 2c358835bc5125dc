// For the CPU loops of the tensor entries: one portable binary, compiled loops for AVX-512, AVX2 and SSE2,
// chosen when the program is loaded. The loops keep a fixed number of accumulators and the build allows no
// FMA contraction
// (-std=c++20), so that every clone and every thread count gives the same bits.
#pragma once

#include <bit>
#include <cstdint>

// Sanitizers instrument the resolver, which runs before their runtime is up; only GCC's form was tried.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define HEARTH_CPU_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HEARTH_CPU_CLONES
#endif

namespace hearth::kernels::cpu {

constexpr int64_t kLanes = 16;             // accumulators of a reduction: one AVX-512 register of floats
constexpr int64_t kGrainElements = 16384;  // least work per thread; below it a fork costs more than it gains

// Rows per task so that a task has at least kGrainElements elements.
constexpr int64_t grain_rows(int64_t cols) {
  return cols >= kGrainElements ? 1 : kGrainElements / (cols > 0 ? cols : 1);
}

// exp(x) to 2 ulp by Cody-Waite reduction and the minimax polynomial of the Cephes library (Moshier), written
// without branches so that loops over it vectorise. Below -87.3 it is 0; above 88 it stays at exp(88); NaN
// stays NaN.
__attribute__((always_inline)) inline float exp_fast(float x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const float clamped_low = x < -87.3f ? -87.3f : x;
  const float clamped = clamped_low > 88.0f ? 88.0f : clamped_low;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t exponent = (std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound) + 127) << 23;
  const float result = p * std::bit_cast<float>(exponent);
  return x < -87.3f ? 0.0f : result;
}

}  // namespace hearth::kernels::cpu
