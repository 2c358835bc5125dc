// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). Every draw is a pure function of (key, counter), so any rank can compute any element of
// any tensor and the initial model is the same for every layout. No state, thread-safe.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace hearth {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr uint32_t kM0 = 0xD2511F53, kM1 = 0xCD9E8D57, kW0 = 0x9E3779B9, kW1 = 0xBB67AE85;  // of the paper
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kM0} * counter[0], p1 = uint64_t{kM1} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key = {key[0] + kW0, key[1] + kW1};
  }
  return counter;
}

// A stream named by (seed, name): element `index` is random access.
class CounterRng {
 public:
  CounterRng(uint64_t seed, std::string_view name);  // name: e.g. a tensor's name; hashed with XXH3-64
  CounterRng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // 128 random bits number `index`.
  std::array<uint32_t, 4> block(uint64_t index) const {
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                       static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                      {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
  }
  uint64_t bits(uint64_t index) const {
    const auto b = block(index);
    return (uint64_t{b[1]} << 32) | b[0];
  }
  // Uniform in [0, 1) with 53 bits.
  double uniform(uint64_t index) const { return static_cast<double>(bits(index) >> 11) * 0x1.0p-53; }
  // Standard normal by Box-Muller; one draw per index (the second of each pair is not used, so that elements
  // stay independent of their neighbours' layout).
  double normal(uint64_t index) const {
    const auto b = block(index);
    const double u1 =
        (static_cast<double>(((uint64_t{b[1]} << 32) | b[0]) >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
    const double u2 = static_cast<double>(((uint64_t{b[3]} << 32) | b[2]) >> 11) * 0x1.0p-53;
    return std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586476925 * u2);
  }

 private:
  uint64_t seed_, stream_;
};

}  // namespace hearth
