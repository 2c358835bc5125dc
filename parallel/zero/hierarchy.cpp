#include "parallel/zero/hierarchy.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"

namespace hearth {
namespace {

struct Place {
  size_t group, index;
};

std::optional<Place> find(const ShardingHierarchy& hierarchy, int rank) {
  for (size_t g = 0; g < hierarchy.shard_groups.size(); ++g) {
    const auto& ranks = hierarchy.shard_groups[g];
    const auto at = std::find(ranks.begin(), ranks.end(), rank);
    if (at != ranks.end()) return Place{g, static_cast<size_t>(at - ranks.begin())};
  }
  return std::nullopt;
}

Place place_of(const ShardingHierarchy& hierarchy, int rank) {
  const auto place = find(hierarchy, rank);
  HEARTH_REQUIRE(place.has_value(), "sharding hierarchy: rank {} is not in the data-parallel group {}", rank,
                 hierarchy.shard_groups);
  return *place;
}

void check_ranks(const std::vector<int>& dp_ranks) {
  HEARTH_REQUIRE(!dp_ranks.empty(), "sharding hierarchy: the data-parallel group is empty");
  std::set<int> seen;
  for (const int rank : dp_ranks)
    HEARTH_REQUIRE(rank >= 0 && seen.insert(rank).second,
                   "sharding hierarchy: rank {} is negative or listed twice in {}", rank, dp_ranks);
}

}  // namespace

const std::vector<int>& ShardingHierarchy::shard_group(int rank) const {
  return shard_groups[place_of(*this, rank).group];
}

int ShardingHierarchy::shard_index(int rank) const {
  return static_cast<int>(place_of(*this, rank).index);
}

std::vector<int> ShardingHierarchy::replica_group(int rank) const {
  const size_t index = place_of(*this, rank).index;
  std::vector<int> ranks;
  for (const auto& group : shard_groups) ranks.push_back(group[index]);
  return ranks;
}

ShardingHierarchy shard_inside_nodes(const std::vector<int>& dp_ranks, int ranks_per_node) {
  HEARTH_CHECK(ranks_per_node >= 1, Config, "sharding inside nodes: ranks per node must be >= 1, got {}",
               ranks_per_node);
  check_ranks(dp_ranks);
  ShardingHierarchy out;
  for (const int rank : dp_ranks) {
    const int node = rank / ranks_per_node;
    const auto same_node = [&](const std::vector<int>& group) {
      return group.front() / ranks_per_node == node;
    };
    auto group = std::find_if(out.shard_groups.begin(), out.shard_groups.end(), same_node);
    if (group == out.shard_groups.end()) group = out.shard_groups.emplace(group);
    group->push_back(rank);
  }
  const std::vector<int>& first = out.shard_groups.front();
  for (const auto& group : out.shard_groups)
    HEARTH_CHECK(
        group.size() == first.size(), Config,
        "sharding inside nodes: a data-parallel group of {} ranks does not divide over nodes of {} "
        "ranks: node {} holds {} of it ({}), node {} holds {} ({}), expected the same number; choose "
        "parallel sizes whose data-parallel groups fill whole nodes, or shard over all ranks",
        dp_ranks.size(), ranks_per_node, first.front() / ranks_per_node, first.size(), fmt::join(first, ", "),
        group.front() / ranks_per_node, group.size(), fmt::join(group, ", "));
  return out;
}

ShardingHierarchy shard_inside_nodes(const Mesh& mesh, int rank, const std::vector<MeshAxis>& axes,
                                     int ranks_per_node) {
  try {
    for (int other = 0; other < mesh.world_size(); ++other) {
      const std::vector<int> group = mesh.group(other, axes);
      if (group.front() == other) shard_inside_nodes(group, ranks_per_node);
    }
  } catch (Error& error) {
    error.with("layout", mesh.describe());
    throw;
  }
  return shard_inside_nodes(mesh.group(rank, axes), ranks_per_node);
}

}  // namespace hearth
