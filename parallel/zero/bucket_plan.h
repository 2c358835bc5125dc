// Where every parameter lies in the flat arenas of data parallelism: pure functions, no communication, no
// memory. A bucket is a contiguous run of an arena whose gradient is reduced in one collective. Buckets are
// numbered in backward order: bucket 0 holds the last parameters of the forward pass, whose gradients are
// ready first (the scheme of PyTorch DDP, Li et al. 2020, section 3.2.3, with the flat buffers of
// Megatron-LM's distributed optimizer). Units: elements. The same plan serves the arenas of parameters,
// gradients and optimizer state, whatever their dtypes. Thread-safe: value types.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hearth {

// Starts of groups, and shards, are multiples of this: 128 elements keep 256-byte alignment for 2-byte types,
// which is what vector loads, cuBLASLt and TMA like best.
constexpr int64_t kBucketAlignment = 128;

struct BucketParameter {
  std::string name;
  int64_t count = 0;  // elements, >= 1
};

// Parameters that lie back to back without padding, so that together they can be seen as one matrix (q, k,
// v). A bucket holds groups of one kind only.
struct BucketGroup {
  std::vector<BucketParameter> parameters;
  int64_t kind = 0;
};

// Half-open range of elements.
struct ElementRange {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool operator==(const ElementRange&) const = default;
};

// Where a parameter lies. Index of parameter: order of the input (forward order).
struct ParameterPlace {
  int64_t bucket = 0;
  int64_t offset = 0;  // within the bucket
  int64_t count = 0;
  bool operator==(const ParameterPlace&) const = default;
};

struct Bucket {
  ElementRange arena;  // its place in the arena; the length divides by dp_size x kBucketAlignment
  int64_t used = 0;    // elements before the final padding (holes between groups included)
  std::vector<int64_t> parameters;  // indices, by offset (forward order within the bucket)
  int64_t kind = 0;                 // of its groups
  bool operator==(const Bucket&) const = default;
};

// A part of a parameter that lies in a shard.
struct ShardPiece {
  int64_t parameter = 0;        // index
  ElementRange in_parameter;    // elements of the flattened parameter
  int64_t offset_in_shard = 0;  // where they begin in the rank's shard of the bucket
  bool operator==(const ShardPiece&) const = default;
};

struct BucketPlan {
  int64_t dp_size = 1;
  std::vector<Bucket> buckets;         // backward order
  std::vector<ParameterPlace> places;  // by parameter
  std::vector<std::string> names;      // by parameter

  int64_t arena_count() const { return buckets.empty() ? 0 : buckets.back().arena.end; }
  // Elements of one rank's shards of all buckets together.
  int64_t shard_count() const { return arena_count() / dp_size; }
  // Arena range that `dp_rank` owns of a bucket: what reduce_scatter gives it.
  ElementRange shard(int64_t bucket, int64_t dp_rank) const;
  // Where the shards of `dp_rank` lie when stored back to back, bucket by bucket: offset of one bucket's
  // shard.
  int64_t shard_offset(int64_t bucket) const {
    return buckets[static_cast<size_t>(bucket)].arena.begin / dp_size;
  }
  // Arena range of a parameter.
  ElementRange parameter(int64_t index) const;
  // The parameters, or parts of them, in the shard of `dp_rank`; padding is in none.
  std::vector<ShardPiece> pieces(int64_t bucket, int64_t dp_rank) const;
  bool operator==(const BucketPlan&) const = default;
};

// `groups` in forward order. A bucket takes groups of one kind (never a part of a group) until it holds
// `target_count` elements or more; a small remainder becomes the last bucket. Throws Error{Usage} for counts,
// a target or a dp_size below 1.
BucketPlan plan_buckets(const std::vector<BucketGroup>& groups, int64_t target_count, int64_t dp_size);

}  // namespace hearth
