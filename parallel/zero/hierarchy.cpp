#include "parallel/zero/hierarchy.h"

#include <algorithm>

#include "base/error.h"

namespace hearth {

ShardingHierarchy sharding_hierarchy(const std::vector<int>& dp_ranks, int instances, int rank) {
  const auto size = static_cast<int>(dp_ranks.size());
  HEARTH_CHECK(instances >= 1 && size % instances == 0, Config,
               "parallel.num_distributed_optimizer_instances {} does not divide the {} data-parallel ranks "
               "(data x context)",
               instances, size);
  const auto at = std::find(dp_ranks.begin(), dp_ranks.end(), rank);
  HEARTH_REQUIRE(at != dp_ranks.end(), "sharding hierarchy: rank {} is not in its data-parallel group", rank);
  const int shards = size / instances, place = static_cast<int>(at - dp_ranks.begin());
  ShardingHierarchy groups;
  const auto block = dp_ranks.begin() + place / shards * shards;
  groups.shard_group.assign(block, block + shards);
  for (int copy = 0; copy < instances; ++copy)
    groups.replica_group.push_back(dp_ranks[static_cast<size_t>(copy * shards + place % shards)]);
  return groups;
}

}  // namespace hearth
