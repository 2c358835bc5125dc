// Two-level data parallelism: state is sharded over the data-parallel ranks of a node and replicated over the
// nodes, so that the frequent collectives stay on the node's links (MiCS, Zhang et al. 2022; hybrid sharding
// of PyTorch FSDP, Zhao et al. 2023). Gradients take two hops: a reduce-scatter inside the shard group, then
// an all-reduce of each shard over its replica group; parameters are gathered inside the shard group alone.
// Pure functions of ranks, no communication. A BucketPlan for such a job is cut for shard_size() ranks, and
// the shard of a rank is its shard_index(). Thread-safe: value types.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/mesh.h"

namespace hearth {

// One data-parallel group, split. Ranks are global, as in Mesh.
struct ShardingHierarchy {
  // By node, in the order in which the nodes first appear; ranks within a node in data-parallel order. All of
  // one size.
  std::vector<std::vector<int>> shard_groups;

  int shard_size() const { return static_cast<int>(shard_groups.front().size()); }
  int replicas() const { return static_cast<int>(shard_groups.size()); }
  // The ranks among which this rank's replica of the state is split. Error{Usage} for a rank of another
  // group, here and below.
  const std::vector<int>& shard_group(int rank) const;
  // Its place there, which is the shard that it owns.
  int shard_index(int rank) const;
  // The ranks that hold the same shard, one of each node in the order of shard_groups.
  std::vector<int> replica_group(int rank) const;

  bool operator==(const ShardingHierarchy&) const = default;
};

// `dp_ranks`: one data-parallel group in order (ranks >= 0, none twice: Error{Usage}). Rank r runs on node
// r / ranks_per_node: the placement by which Mesh keeps tensor-parallel groups on a node. Error{Config},
// naming the factors, when two nodes hold different numbers of the group's ranks, or ranks_per_node is
// below 1. A group with one rank per node gives shard groups of one: valid, but then nothing is sharded.
ShardingHierarchy shard_inside_nodes(const std::vector<int>& dp_ranks, int ranks_per_node);

// The same for the data-parallel group of `rank` in a mesh, where that group spans `axes` (Dp, or Dp and Cp).
// Checks every group of the mesh, so that all ranks throw alike where one group does not divide.
ShardingHierarchy shard_inside_nodes(const Mesh& mesh, int rank, const std::vector<MeshAxis>& axes,
                                     int ranks_per_node);

}  // namespace hearth
