// Two-level data parallelism: state is sharded over some of the data-parallel ranks and replicated over the
// rest, so that the frequent collectives stay on fast links (MiCS, Zhang et al. 2022; hybrid sharding of
// PyTorch FSDP, Zhao et al. 2023; Megatron-LM's num_distributed_optimizer_instances). Gradients take two
// hops: a reduce-scatter inside the shard group, then an all-reduce of each shard over its replica group;
// parameters are gathered inside the shard group alone. Pure functions of ranks; value types, thread-safe.
#pragma once

#include <vector>

namespace hearth {

// The groups of one rank. Ranks are global.
struct ShardingHierarchy {
  std::vector<int> shard_group;    // the ranks among which one copy of the state is split
  std::vector<int> replica_group;  // the ranks that hold the same shard, one of each copy
};

// `dp_ranks`: one data-parallel group in order, cut into `instances` blocks of neighbours: as many as it
// spans nodes keeps every block inside one, where ranks are placed node by node. Error{Config} where
// instances does not divide.
ShardingHierarchy sharding_hierarchy(const std::vector<int>& dp_ranks, int instances, int rank);

}  // namespace hearth
