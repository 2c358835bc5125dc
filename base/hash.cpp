#include "base/hash.h"

#include <fmt/core.h>
#include <xxhash.h>

#include "base/error.h"

namespace hearth {
namespace {
std::string hex(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}
}  // namespace

uint64_t xxh3_64(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}
uint64_t xxh3_64(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}
std::string xxh3_128_hex(std::span<const std::byte> bytes) {
  return hex(XXH3_128bits(bytes.data(), bytes.size()));
}
std::string xxh3_128_hex(std::string_view text) {
  return hex(XXH3_128bits(text.data(), text.size()));
}

struct Xxh3Stream::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Xxh3Stream::Xxh3Stream() : state_(std::make_unique<State>()) {
  HEARTH_ASSERT(state_->xxh != nullptr);
  XXH3_128bits_reset(state_->xxh);
}
Xxh3Stream::~Xxh3Stream() = default;
Xxh3Stream::Xxh3Stream(Xxh3Stream&&) noexcept = default;
Xxh3Stream& Xxh3Stream::operator=(Xxh3Stream&&) noexcept = default;
void Xxh3Stream::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->xxh, bytes.data(), bytes.size());
}
std::string Xxh3Stream::hex128() const {
  return hex(XXH3_128bits_digest(state_->xxh));
}

}  // namespace hearth
