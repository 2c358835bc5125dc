#include "base/rng.h"

#include "base/hash.h"

namespace hearth {

CounterRng::CounterRng(uint64_t seed, std::string_view name) : seed_(seed), stream_(xxh3_64(name)) {}

}  // namespace hearth
