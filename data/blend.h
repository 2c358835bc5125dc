// Which dataset a sample comes from, as a pure function of the weights and the sample's number: datasets take
// turns in a cycle of fixed length in which each has a quota in proportion to its weight, ordered by largest
// deficit, so that every prefix of the stream is close to the wanted mixture. Value type, thread-safe once
// built.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hearth {

class Blend {
 public:
  // Weights: finite, > 0; only ratios matter. Quotas are rounded to 1/10000 (largest remainder) and are at
  // least one slot, so a weight under 0.0001 of the total is served slightly too often. Throws Error{Config}
  // for bad weights.
  explicit Blend(std::span<const double> weights);

  struct Slot {
    int32_t source;   // which dataset
    int64_t ordinal;  // how many samples it gave before this one
  };
  Slot slot(int64_t sample) const;  // sample >= 0
  // How many of the first `samples` samples come from `source`.
  int64_t count(int32_t source, int64_t samples) const;

 private:
  std::vector<int32_t> order_;     // [cycle] source of each slot
  std::vector<int32_t> ordinals_;  // [cycle] ordinal within the cycle
  std::vector<int64_t> quotas_;    // [sources] slots per cycle
};

}  // namespace hearth
