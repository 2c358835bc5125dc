// The layout of flat arenas: invariants over a table of models, targets and rank counts, and one plan by
// hand.
#include "parallel/zero/bucket_plan.h"

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <limits>

#include "base/error.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

BucketGroup group(std::initializer_list<int64_t> counts) {
  BucketGroup out;
  for (const int64_t count : counts) out.parameters.push_back({"p" + std::to_string(count), count});
  return out;
}

// A small decoder: embedding, layers with q|k|v together, odd sizes included.
std::vector<BucketGroup> decoder() {
  std::vector<BucketGroup> groups{group({4099 * 96})};
  for (int layer = 0; layer < 5; ++layer) {
    groups.push_back(group({96}));
    groups.push_back(group({96 * 96, 96 * 32, 96 * 32}));
    groups.push_back(group({96 * 96}));
    groups.push_back(group({97}));
    groups.push_back(group({96 * 255, 96 * 255}));
    groups.push_back(group({255 * 96}));
  }
  groups.push_back(group({1}));
  return groups;
}

std::vector<std::vector<BucketGroup>> tables() {
  return {{},
          {group({1})},
          {group({127}), group({128}), group({129})},
          {group({}), group({5, 6, 7}), group({})},
          decoder()};
}

void check_places(const BucketPlan& plan, const std::vector<BucketGroup>& groups) {
  size_t index = 0;
  for (const auto& g : groups) {
    for (size_t i = 0; i < g.parameters.size(); ++i, ++index) {
      const ParameterPlace& place = plan.places[index];
      BOOST_REQUIRE(place.count == g.parameters[i].count);
      BOOST_REQUIRE(plan.names[index] == g.parameters[i].name);
      if (i == 0) {
        BOOST_REQUIRE(place.offset % kBucketAlignment == 0);
      } else {  // a group is one piece
        BOOST_REQUIRE(place.bucket == plan.places[index - 1].bucket);
        BOOST_REQUIRE(place.offset == plan.places[index - 1].offset + plan.places[index - 1].count);
      }
      // Backward order: what comes later in the forward pass lies in the same or an earlier bucket.
      if (index > 0) BOOST_REQUIRE(place.bucket <= plan.places[index - 1].bucket);
    }
  }
  BOOST_REQUIRE(index == plan.places.size());
}

void check_buckets(const BucketPlan& plan, int64_t target) {
  int64_t end = 0;
  for (size_t b = 0; b < plan.buckets.size(); ++b) {
    const Bucket& bucket = plan.buckets[b];
    BOOST_REQUIRE(bucket.arena.begin == end);
    BOOST_REQUIRE(bucket.arena.count() % (plan.dp_size * kBucketAlignment) == 0);
    BOOST_REQUIRE(bucket.used > 0);
    BOOST_REQUIRE(bucket.arena.count() - bucket.used >= 0);
    BOOST_REQUIRE(bucket.arena.count() - bucket.used < plan.dp_size * kBucketAlignment);
    if (b + 1 < plan.buckets.size()) BOOST_REQUIRE(bucket.arena.count() >= target);
    end = bucket.arena.end;
  }
  BOOST_REQUIRE(end == plan.arena_count());
}

// Every element of every parameter is in exactly one shard piece, at the place that the arena gives it.
void check_shards(const BucketPlan& plan) {
  std::vector<int64_t> covered(plan.places.size());
  for (int64_t b = 0; b < static_cast<int64_t>(plan.buckets.size()); ++b) {
    for (int64_t r = 0; r < plan.dp_size; ++r) {
      const ElementRange shard = plan.shard(b, r);
      BOOST_REQUIRE(shard.begin % kBucketAlignment == 0);
      BOOST_REQUIRE(shard.count() == plan.buckets[static_cast<size_t>(b)].arena.count() / plan.dp_size);
      BOOST_REQUIRE(plan.shard_offset(b) + shard.count() <= plan.shard_count());
      for (const ShardPiece& piece : plan.pieces(b, r)) {
        int64_t& next = covered[static_cast<size_t>(piece.parameter)];
        BOOST_REQUIRE(piece.in_parameter.begin ==
                      next);  // ranks ascend, so pieces of a parameter follow each other
        next = piece.in_parameter.end;
        BOOST_REQUIRE(shard.begin + piece.offset_in_shard ==
                      plan.parameter(piece.parameter).begin + piece.in_parameter.begin);
        BOOST_REQUIRE(piece.offset_in_shard + piece.in_parameter.count() <= shard.count());
      }
    }
  }
  for (size_t p = 0; p < covered.size(); ++p) BOOST_REQUIRE(covered[p] == plan.places[p].count);
}

}  // namespace

BOOST_DATA_TEST_CASE(invariants,
                     bdata::make({1, 2, 3, 4, 7, 8, 64}) * bdata::make({1, 128, 5000, 100000, 100000000}),
                     dp_size, target) {
  for (const auto& groups : tables()) {
    const BucketPlan plan = plan_buckets(groups, target, dp_size);
    check_places(plan, groups);
    check_buckets(plan, target);
    check_shards(plan);
  }
}

BOOST_AUTO_TEST_CASE(one_plan_by_hand) {
  // Forward: a(200), [b(100) c(50)], d(10); target 200 for two ranks (buckets divide by 256).
  const BucketPlan plan = plan_buckets({group({200}), group({100, 50}), group({10})}, 200, 2);
  BOOST_TEST_REQUIRE(plan.buckets.size() == 2u);
  // Bucket 0 takes d (128 with padding), then b and c (256): b at 0, c at 100, d at 256, used 266, padded to
  // 512.
  BOOST_CHECK((plan.buckets[0] == Bucket{.arena = {0, 512}, .used = 266, .parameters = {1, 2, 3}}));
  BOOST_CHECK((plan.buckets[1] == Bucket{.arena = {512, 768}, .used = 200, .parameters = {0}}));
  BOOST_CHECK((plan.places[2] == ParameterPlace{.bucket = 0, .offset = 100, .count = 50}));
  BOOST_CHECK((plan.parameter(3) == ElementRange{256, 266}));
  BOOST_CHECK((plan.shard(1, 1) == ElementRange{640, 768}));
  BOOST_TEST(plan.shard_offset(1) == 256);
  BOOST_TEST(plan.shard_count() == 384);
  const auto pieces = plan.pieces(1, 1);
  BOOST_TEST_REQUIRE(pieces.size() == 1u);
  BOOST_CHECK((pieces[0] == ShardPiece{.parameter = 0, .in_parameter = {128, 200}, .offset_in_shard = 0}));
}

BOOST_AUTO_TEST_CASE(bucket_borders_do_not_depend_on_the_number_of_ranks) {
  const auto one = plan_buckets(decoder(), 50000, 1);
  for (const int64_t dp_size : {2, 4, 8}) {
    const auto many = plan_buckets(decoder(), 50000, dp_size);
    BOOST_TEST_REQUIRE(many.buckets.size() == one.buckets.size());
    for (size_t b = 0; b < one.buckets.size(); ++b)
      BOOST_TEST(many.buckets[b].parameters == one.buckets[b].parameters, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(nonsense_is_refused) {
  BOOST_CHECK_THROW(plan_buckets({group({1})}, 0, 1), Error);
  BOOST_CHECK_THROW(plan_buckets({group({1})}, 1, 0), Error);
  BOOST_CHECK_THROW(plan_buckets({group({0})}, 1, 1), Error);
  BOOST_CHECK_THROW(plan_buckets({group({std::numeric_limits<int64_t>::max() - 5}), group({9})}, 1, 1),
                    Error);
  const auto plan = plan_buckets({group({1})}, 1, 2);
  BOOST_CHECK_THROW(plan.shard(1, 0), Error);
  BOOST_CHECK_THROW(plan.shard(0, 2), Error);
}
