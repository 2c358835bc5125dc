// A keyed permutation of [0, size) that needs no table: element `position` is computed in constant time and
// memory, so a corpus of 10^12 tokens is shuffled without an index. A balanced Feistel network over the next
// even number of bits, made format-preserving by cycle walking (Black and Rogaway 2002, "Ciphers with
// arbitrary finite domains"). A shuffle, not a cipher: the round function is a mixing function, not a
// cryptographic one. Pure, thread-safe.
#pragma once

#include <array>
#include <cstdint>

namespace hearth {

class Permutation {
 public:
  // size in [1, 2^62]; equal (size, key) give equal permutations on every machine. Throws Error{Internal}
  // otherwise.
  Permutation(int64_t size, uint64_t key);

  int64_t size() const { return size_; }
  int64_t operator()(int64_t position) const;  // position and result in [0, size)
  int64_t inverse(int64_t value) const;        // inverse(operator()(p)) == p

 private:
  static constexpr int kRounds =
      8;  // 4 suffice for an ideal round function (Luby and Rackoff); tiny halves need more
  uint64_t encrypt(uint64_t block) const;
  uint64_t decrypt(uint64_t block) const;

  int64_t size_;
  int half_bits_;
  std::array<uint64_t, kRounds> round_keys_;
};

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that mixes well.
constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace hearth
