#include "parallel/zero/hierarchy.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <set>

#include "base/error.h"
#include "parallel/mesh.h"

using namespace hearth;
using Ranks = std::vector<int>;

BOOST_AUTO_TEST_CASE(two_nodes_by_hand) {
  // 8 data-parallel ranks of a job with two tensor-parallel ranks each: nodes hold ranks 0-7 and 8-15.
  const Ranks dp = {0, 2, 4, 6, 8, 10, 12, 14};
  const ShardingHierarchy groups = sharding_hierarchy(dp, 2, 10);
  BOOST_CHECK((groups.shard_group == Ranks{8, 10, 12, 14}));
  BOOST_CHECK((groups.replica_group == Ranks{2, 10}));
}

BOOST_AUTO_TEST_CASE(one_instance_shards_over_all_and_as_many_as_ranks_over_none) {
  const Ranks dp = {3, 7, 11};
  BOOST_CHECK((sharding_hierarchy(dp, 1, 7).shard_group == dp));
  BOOST_CHECK((sharding_hierarchy(dp, 1, 7).replica_group == Ranks{7}));
  BOOST_CHECK((sharding_hierarchy(dp, 3, 7).shard_group == Ranks{7}));
  BOOST_CHECK((sharding_hierarchy(dp, 3, 7).replica_group == dp));
}

// All ranks of a group see the same groups, and a replica group meets each shard group once.
BOOST_AUTO_TEST_CASE(groups_are_a_grid) {
  for (int size = 1; size <= 16; ++size)
    for (int instances = 1; instances <= size; ++instances) {
      if (size % instances != 0) continue;
      Ranks dp;
      for (int i = 0; i < size; ++i) dp.push_back(5 * i + 1);
      for (const int rank : dp) {
        const auto mine = sharding_hierarchy(dp, instances, rank);
        for (const int other : mine.shard_group)
          BOOST_REQUIRE(sharding_hierarchy(dp, instances, other).shard_group == mine.shard_group);
        std::set<Ranks> met;
        for (const int other : mine.replica_group) {
          const auto theirs = sharding_hierarchy(dp, instances, other);
          BOOST_REQUIRE(theirs.replica_group == mine.replica_group);
          met.insert(theirs.shard_group);
        }
        BOOST_REQUIRE(static_cast<int>(met.size()) == instances);
        BOOST_REQUIRE(mine.shard_group.size() * met.size() == dp.size());
      }
    }
}

BOOST_AUTO_TEST_CASE(what_does_not_divide_is_refused) {
  BOOST_CHECK_EXCEPTION(sharding_hierarchy({0, 1, 2, 3}, 3, 0), Error,
                        [](const Error& e) { return e.kind() == ErrorKind::Config; });
  BOOST_CHECK_THROW(sharding_hierarchy({0, 1}, 1, 5), Error);
}
