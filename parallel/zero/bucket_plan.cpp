#include "parallel/zero/bucket_plan.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return checked_add(value, multiple - 1) / multiple * multiple;
}

int64_t total(const BucketGroup& group) {
  int64_t sum = 0;
  for (const auto& p : group.parameters) sum = checked_add(sum, p.count);
  return sum;
}

void check(const std::vector<BucketGroup>& groups, int64_t target_count, int64_t dp_size) {
  HEARTH_REQUIRE(target_count >= 1, "bucket plan: target of {} elements, expected >= 1", target_count);
  HEARTH_REQUIRE(dp_size >= 1, "bucket plan: dp_size {}, expected >= 1", dp_size);
  for (const auto& group : groups)
    for (const auto& p : group.parameters)
      HEARTH_REQUIRE(p.count >= 1, "bucket plan: parameter {} has {} elements, expected >= 1", p.name,
                     p.count);
}

// Lays groups [first, last) out at `begin`, in forward order.
Bucket lay_out(const std::vector<BucketGroup>& groups, size_t first, size_t last, int64_t first_parameter,
               int64_t begin, BucketPlan& plan) {
  Bucket bucket;
  bucket.kind = groups[first].kind;
  const auto number = static_cast<int64_t>(plan.buckets.size());
  int64_t index = first_parameter;
  for (size_t g = first; g < last; ++g) {
    bucket.used = round_up(bucket.used, kBucketAlignment);
    for (const auto& p : groups[g].parameters) {
      plan.places[static_cast<size_t>(index)] = {.bucket = number, .offset = bucket.used, .count = p.count};
      bucket.parameters.push_back(index++);
      bucket.used += p.count;
    }
  }
  bucket.arena = {begin,
                  checked_add(begin, round_up(bucket.used, checked_mul(plan.dp_size, kBucketAlignment)))};
  return bucket;
}

}  // namespace

BucketPlan plan_buckets(const std::vector<BucketGroup>& groups, int64_t target_count, int64_t dp_size) {
  check(groups, target_count, dp_size);
  BucketPlan plan;
  plan.dp_size = dp_size;
  for (const auto& group : groups)
    for (const auto& p : group.parameters) plan.names.push_back(p.name);
  plan.places.resize(plan.names.size());
  auto first_parameter = static_cast<int64_t>(plan.names.size());
  for (size_t last = groups.size(); last > 0;) {
    size_t first = last;
    int64_t count = 0;
    while (first > 0 && count < target_count && groups[first - 1].kind == groups[last - 1].kind) {
      --first;
      count = checked_add(count, round_up(total(groups[first]), kBucketAlignment));
      first_parameter -= static_cast<int64_t>(groups[first].parameters.size());
    }
    if (count > 0)  // groups without parameters make no bucket
      plan.buckets.push_back(lay_out(groups, first, last, first_parameter, plan.arena_count(), plan));
    last = first;
  }
  return plan;
}

ElementRange BucketPlan::shard(int64_t bucket, int64_t dp_rank) const {
  HEARTH_REQUIRE(
      bucket >= 0 && bucket < static_cast<int64_t>(buckets.size()) && dp_rank >= 0 && dp_rank < dp_size,
      "bucket plan: no shard of bucket {} for rank {} among {} buckets and {} ranks", bucket, dp_rank,
      buckets.size(), dp_size);
  const ElementRange arena = buckets[static_cast<size_t>(bucket)].arena;
  const int64_t count = arena.count() / dp_size;
  return {arena.begin + dp_rank * count, arena.begin + (dp_rank + 1) * count};
}

ElementRange BucketPlan::parameter(int64_t index) const {
  const ParameterPlace& place = places[static_cast<size_t>(index)];
  const int64_t begin = buckets[static_cast<size_t>(place.bucket)].arena.begin + place.offset;
  return {begin, begin + place.count};
}

std::vector<ShardPiece> BucketPlan::pieces(int64_t bucket, int64_t dp_rank) const {
  const ElementRange mine = shard(bucket, dp_rank);
  std::vector<ShardPiece> out;
  for (const int64_t index : buckets[static_cast<size_t>(bucket)].parameters) {
    const ElementRange whole = parameter(index);
    const ElementRange common{std::max(whole.begin, mine.begin), std::min(whole.end, mine.end)};
    if (common.empty()) continue;
    out.push_back({.parameter = index,
                   .in_parameter = {common.begin - whole.begin, common.end - whole.begin},
                   .offset_in_shard = common.begin - mine.begin});
  }
  return out;
}

}  // namespace hearth
