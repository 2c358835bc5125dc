#include "parallel/zero/bucket_plan.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace hearth {
namespace {
int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
}  // namespace

ElementRange BucketPlan::shard(int64_t bucket_index, int64_t rank) const {
  const ElementRange whole = buckets.at(static_cast<size_t>(bucket_index));
  const int64_t share = whole.size() / data_parallel_size;
  return {whole.begin + rank * share, whole.begin + (rank + 1) * share};
}

ElementRange BucketPlan::intersection(int64_t parameter, ElementRange range) const {
  const auto i = static_cast<size_t>(parameter);
  const int64_t begin = std::max(offset[i], range.begin), end = std::min(offset[i] + size[i], range.end);
  if (begin >= end) return {};
  return {begin - offset[i], end - offset[i]};
}

BucketPlan make_bucket_plan(const std::vector<std::vector<int64_t>>& groups, int64_t data_parallel_size,
                            int64_t bucket_elements) {
  HEARTH_REQUIRE(data_parallel_size > 0 && bucket_elements > 0, "bucket plan: {} ranks, {} elements a bucket",
                 data_parallel_size, bucket_elements);
  BucketPlan plan;
  plan.data_parallel_size = data_parallel_size;
  size_t parameters = 0;
  for (const auto& group : groups) parameters += group.size();
  plan.offset.resize(parameters);
  plan.size.resize(parameters);
  plan.bucket.resize(parameters);
  ElementRange open;
  const auto close = [&] {
    open.end = open.begin + round_up(open.size(), data_parallel_size * kArenaAlignment);
    plan.buckets.push_back(open);
    open = {open.end, open.end};
  };
  size_t next = parameters;  // one past the last parameter of the group at hand
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    next -= group->size();
    int64_t cursor = round_up(open.end, kArenaAlignment);
    for (size_t member = 0; member < group->size(); ++member) {
      HEARTH_REQUIRE((*group)[member] > 0, "parameter {} has {} elements", next + member, (*group)[member]);
      plan.offset[next + member] = cursor;
      plan.size[next + member] = (*group)[member];
      plan.bucket[next + member] = static_cast<int64_t>(plan.buckets.size());
      cursor += (*group)[member];
    }
    open.end = cursor;
    if (open.size() >= bucket_elements) close();
  }
  if (open.size() > 0) close();
  plan.total = open.begin;
  return plan;
}

}  // namespace hearth
