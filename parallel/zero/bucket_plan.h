// Where every parameter lies in the flat arenas, and how the arenas are cut into buckets and shards. Pure arithmetic,
// no communication, no torch. Buckets are in backward order: bucket 0 holds the last parameters of the model, whose
// gradients are complete first (Li et al. 2020, PyTorch DDP; Rajbhandari et al. 2020, ZeRO).
// All numbers are elements. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

namespace hearth {

struct ElementRange {
  int64_t begin = 0, end = 0;
  bool operator==(const ElementRange&) const = default;
  int64_t size() const { return end - begin; }
};

// A group starts at a multiple of this; shards too: 512 bytes of fp32, so that vector loads never straddle owners.
constexpr int64_t kArenaAlignment = 128;

struct BucketPlan {
  int64_t data_parallel_size = 1;
  int64_t total = 0;                     // arena size, padding included
  std::vector<ElementRange> buckets;     // consecutive; each size a multiple of data_parallel_size x kArenaAlignment
  std::vector<int64_t> offset;           // of parameter i (forward order) in the arena
  std::vector<int64_t> size;             // of parameter i, its own padding rows included
  std::vector<int64_t> bucket;           // of parameter i

  // The part of a bucket that data-parallel rank `rank` owns.
  ElementRange shard(int64_t bucket_index, int64_t rank) const;
  // The elements of parameter i, relative to its start, that lie in `range` of the arena; empty if none.
  ElementRange intersection(int64_t parameter, ElementRange range) const;
};

// `groups` in forward order: sizes of the parameters of each group, which are stored without gaps between them.
// A bucket is closed once it holds at least `bucket_elements`.
BucketPlan make_bucket_plan(const std::vector<std::vector<int64_t>>& groups, int64_t data_parallel_size,
                            int64_t bucket_elements);

}  // namespace hearth
