// Shard and replica groups: by hand for the usual layouts, and invariants for every factorisation of up to 16
// ranks on every size of node.
#include "parallel/zero/hierarchy.h"

#include <algorithm>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <map>
#include <string>

#include "base/error.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

using Ranks = std::vector<int>;
using Groups = std::vector<Ranks>;

// Ranks of the group by node.
std::map<int, int> count_by_node(const Ranks& ranks, int ranks_per_node) {
  std::map<int, int> counts;
  for (const int rank : ranks) ++counts[rank / ranks_per_node];
  return counts;
}

bool divides(const Ranks& ranks, int ranks_per_node) {
  const auto counts = count_by_node(ranks, ranks_per_node);
  return std::all_of(counts.begin(), counts.end(),
                     [&](const auto& node) { return node.second == counts.begin()->second; });
}

// What every rank of the group relies on.
void check_groups(const ShardingHierarchy& hierarchy, const Ranks& dp_ranks, int ranks_per_node) {
  BOOST_REQUIRE(hierarchy.shard_size() * hierarchy.replicas() == static_cast<int>(dp_ranks.size()));
  std::map<int, int> seen;
  for (const int rank : dp_ranks) {
    const Ranks &shards = hierarchy.shard_group(rank), replicas = hierarchy.replica_group(rank);
    BOOST_REQUIRE(static_cast<int>(shards.size()) == hierarchy.shard_size());
    BOOST_REQUIRE(static_cast<int>(replicas.size()) == hierarchy.replicas());
    BOOST_REQUIRE(shards[static_cast<size_t>(hierarchy.shard_index(rank))] == rank);
    BOOST_REQUIRE(std::count(replicas.begin(), replicas.end(), rank) == 1);
    for (const int other : shards) {
      BOOST_REQUIRE(other / ranks_per_node == rank / ranks_per_node);  // never leaves the node
      BOOST_REQUIRE(hierarchy.shard_group(other) == shards);
      ++seen[other];
    }
    for (const int other : replicas) {
      BOOST_REQUIRE((other == rank || other / ranks_per_node != rank / ranks_per_node));
      BOOST_REQUIRE(hierarchy.replica_group(other) == replicas);
      BOOST_REQUIRE(hierarchy.shard_index(other) == hierarchy.shard_index(rank));
    }
  }
  // The shard groups cover the data-parallel group, each rank once.
  BOOST_REQUIRE(seen.size() == dp_ranks.size());
  for (const int rank : dp_ranks) BOOST_REQUIRE(seen[rank] == hierarchy.shard_size());
}

std::vector<Mesh> meshes_of(int world_size) {
  std::vector<Mesh> out;
  for (int pp = 1; pp <= world_size; ++pp)
    for (int cp = 1; cp <= world_size / pp; ++cp)
      for (int tp = 1; tp <= world_size / pp / cp; ++tp)
        if (world_size % (pp * cp * tp) == 0)
          out.push_back(Mesh({pp, world_size / (pp * cp * tp), cp, 1, tp}));
  return out;
}

std::string message_of(const Mesh& mesh, int rank, int ranks_per_node) {
  try {
    shard_inside_nodes(mesh, rank, {MeshAxis::Dp}, ranks_per_node);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::Config));
    return error.what();
  }
  return "";
}

}  // namespace

BOOST_AUTO_TEST_CASE(two_nodes_of_four) {
  const auto all = shard_inside_nodes({0, 1, 2, 3, 4, 5, 6, 7}, 4);
  BOOST_CHECK((all.shard_groups == Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  BOOST_CHECK((all.replica_group(6) == Ranks{2, 6}));
  BOOST_TEST(all.shard_index(6) == 2);
  // Every second rank, as beside tensor parallelism of 2.
  const auto odd = shard_inside_nodes({1, 3, 5, 7}, 4);
  BOOST_CHECK((odd.shard_groups == Groups{{1, 3}, {5, 7}}));
  BOOST_CHECK((odd.replica_group(1) == Ranks{1, 5}));
  // The second pipeline stage: all on one node, so one replica.
  const auto stage = shard_inside_nodes({4, 5, 6, 7}, 4);
  BOOST_TEST((stage.shard_size() == 4 && stage.replicas() == 1));
  // Tensor parallelism fills the node: nothing to shard inside.
  const auto wide = shard_inside_nodes({3, 7}, 4);
  BOOST_CHECK((wide.shard_groups == Groups{{3}, {7}}));
  BOOST_CHECK((wide.replica_group(7) == Ranks{3, 7}));
}

BOOST_AUTO_TEST_CASE(order_within_the_group_is_kept) {
  const auto mixed = shard_inside_nodes({5, 0, 4, 1}, 4);
  BOOST_CHECK((mixed.shard_groups == Groups{{5, 4}, {0, 1}}));
  BOOST_CHECK((mixed.replica_group(4) == Ranks{4, 1}));
}

BOOST_DATA_TEST_CASE(every_layout_of_up_to_16_ranks, bdata::make({1, 2, 3, 4, 6, 8, 12, 16}), world_size) {
  int checked = 0, refused = 0;
  for (const Mesh& mesh : meshes_of(world_size)) {
    for (int ranks_per_node = 1; ranks_per_node <= world_size + 1; ++ranks_per_node) {
      for (const auto& axes : {std::vector{MeshAxis::Dp}, std::vector{MeshAxis::Dp, MeshAxis::Cp}}) {
        bool all_divide = true;
        for (int rank = 0; rank < world_size; ++rank)
          all_divide = all_divide && divides(mesh.group(rank, axes), ranks_per_node);
        for (int rank = 0; rank < world_size; ++rank) {
          if (all_divide) {
            check_groups(shard_inside_nodes(mesh, rank, axes, ranks_per_node), mesh.group(rank, axes),
                         ranks_per_node);
            ++checked;
          } else {  // on every rank, also those whose own group would divide
            BOOST_REQUIRE_THROW(shard_inside_nodes(mesh, rank, axes, ranks_per_node), Error);
            ++refused;
          }
        }
      }
    }
  }
  BOOST_TEST(checked > 0);
  BOOST_TEST((refused > 0 || world_size < 3));
}

BOOST_AUTO_TEST_CASE(an_uneven_split_names_the_factors) {
  // Stages of 6 ranks on nodes of 8: the first fits node 0, the second has 2 ranks there and 4 on node 1.
  const Mesh mesh({2, 6, 1, 1, 1});
  for (const int rank : {0, 11}) {
    const std::string message = message_of(mesh, rank, 8);
    for (const char* part : {"6 ranks", "nodes of 8", "node 0 holds 2 of it (6, 7)",
                             "node 1 holds 4 (8, 9, 10, 11)", "pp 2 x dp 6 x cp 1 x ep 1 x tp 1 = 12 ranks"})
      BOOST_TEST(message.find(part) != std::string::npos, "\"" << part << "\" is not in: " << message);
  }
  BOOST_TEST(message_of(mesh, 0, 6).empty());
  BOOST_TEST(message_of(mesh, 0, 0).find("got 0") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(nonsense_is_refused) {
  BOOST_CHECK_THROW(shard_inside_nodes(Ranks{}, 4), Error);
  BOOST_CHECK_THROW(shard_inside_nodes({0, 1, 1}, 4), Error);
  BOOST_CHECK_THROW(shard_inside_nodes({0, -1}, 4), Error);
  const auto hierarchy = shard_inside_nodes({0, 2}, 4);
  BOOST_CHECK_THROW(hierarchy.shard_group(1), Error);
  BOOST_CHECK_THROW(hierarchy.shard_index(1), Error);
  BOOST_CHECK_THROW(hierarchy.replica_group(1), Error);
}
