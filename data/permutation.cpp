#include "data/permutation.h"

#include <bit>
#include <utility>

#include "base/error.h"

namespace hearth {

Permutation::Permutation(int64_t size, uint64_t key) : size_(size) {
  HEARTH_ASSERT(size >= 1 && size <= int64_t{1} << 62);
  const int bits = std::bit_width(static_cast<uint64_t>(size - 1));
  half_bits_ =
      bits < 2 ? 1 : (bits + 1) / 2;  // 4 x size blocks at most: a walk takes 4 steps at most on average
  for (size_t round = 0; round < round_keys_.size(); ++round) {
    key += 0x9e3779b97f4a7c15u;  // the step of SplitMix64
    round_keys_[round] = mix64(key);
  }
}

uint64_t Permutation::encrypt(uint64_t block) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = block >> half_bits_, right = block & mask;
  for (const uint64_t key : round_keys_) left = std::exchange(right, left ^ (mix64(right ^ key) & mask));
  return (left << half_bits_) | right;
}

uint64_t Permutation::decrypt(uint64_t block) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = block >> half_bits_, right = block & mask;
  for (auto key = round_keys_.rbegin(); key != round_keys_.rend(); ++key) {
    right = std::exchange(left, right ^ (mix64(left ^ *key) & mask));
  }
  return (left << half_bits_) | right;
}

int64_t Permutation::operator()(int64_t position) const {
  HEARTH_ASSERT(position >= 0 && position < size_);
  auto block = static_cast<uint64_t>(position);
  do block = encrypt(block);
  while (block >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(block);
}

int64_t Permutation::inverse(int64_t value) const {
  HEARTH_ASSERT(value >= 0 && value < size_);
  auto block = static_cast<uint64_t>(value);
  do block = decrypt(block);
  while (block >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(block);
}

}  // namespace hearth
