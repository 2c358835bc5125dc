// Digests: XXH3 64 bits for token blocks, 128 bits for files and datasets (xxHash, Yann Collet). Not
// cryptographic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace hearth {

uint64_t xxh3_64(std::span<const std::byte> bytes);
uint64_t xxh3_64(std::string_view text);

// 32 lower-case hexadecimal digits, most significant first (the canonical form of `xxhsum -H2`).
std::string xxh3_128_hex(std::span<const std::byte> bytes);
std::string xxh3_128_hex(std::string_view text);

// Streaming form. Not thread-safe; movable, not copyable.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }
  std::string hex128() const;  // digest of everything so far; more may follow

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hearth
