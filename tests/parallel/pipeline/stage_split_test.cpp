// The split of layers against every possible split.
#include "parallel/pipeline/stage_split.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <functional>
#include <numeric>

#include "base/error.h"

using namespace hearth;

namespace {

bool is_config_error(const Error& e) {
  return e.kind() == ErrorKind::Config;
}

// What is to be minimal, in this order: the stage costs from the largest down, then the layers at the ends.
using Score = std::pair<std::vector<double>, int>;

Score score(const std::vector<int>& split, const StageCosts& costs) {
  std::vector<double> stages;
  for (const int count : split) stages.push_back(count * costs.layer);
  stages.front() += costs.embedding;
  stages.back() += costs.head;
  std::sort(stages.rbegin(), stages.rend());
  return {stages, split.size() > 1 ? split.front() + split.back() : split.front()};
}

void for_each_split(int layers, int stages, std::vector<int>& head, const std::function<void()>& f) {
  if (stages == 1) {
    head.push_back(layers);
    f();
    head.pop_back();
    return;
  }
  for (int count = 1; count <= layers - stages + 1; ++count) {
    head.push_back(count);
    for_each_split(layers - count, stages - 1, head, f);
    head.pop_back();
  }
}

}  // namespace

BOOST_AUTO_TEST_CASE(no_other_split_is_better) {
  int cases = 0;
  for (int stages = 1; stages <= 5; ++stages)
    for (int layers = stages; layers <= 13; ++layers)
      for (const double layer : {1., 4.})
        for (const double embedding : {0., 1., 6.})
          for (const double head : {0., 2., 4., 9.}) {
            const StageCosts costs{layer, embedding, head};
            const auto found = split_layers(layers, stages, costs);
            BOOST_REQUIRE(std::accumulate(found.begin(), found.end(), 0) == layers);
            BOOST_REQUIRE_NO_THROW(check_split(found, layers, stages));
            std::vector<int> split;
            for_each_split(layers, stages, split, [&] {
              BOOST_REQUIRE(score(found, costs) <= score(split, costs));
              ++cases;
            });
          }
  BOOST_TEST(cases > 10000);
}

// Both ends on one rank: no other split has a smaller largest rank.
BOOST_AUTO_TEST_CASE(ranks_of_a_v_are_balanced) {
  int cases = 0;
  for (const auto kind : {ScheduleKind::Zbv, ScheduleKind::DualPipeV})
    for (int ranks = 2; ranks <= 3; ++ranks)
      for (int layers = 2 * ranks; layers <= 14; ++layers)
        for (const double head : {0., 1., 2.5, 6.}) {
          const auto schedule = make_schedule(kind, ranks, 2, 2 * ranks);
          const StageCosts costs{1, .5, head};
          const auto largest = [&](const std::vector<int>& split) {
            std::vector<double> sums(static_cast<size_t>(ranks), 0);
            for (int v = 0; v < 2 * ranks; ++v)
              sums[static_cast<size_t>(schedule.place(v).rank)] +=
                  split[static_cast<size_t>(v)] * costs.layer;
            sums[0] += costs.embedding + costs.head;
            return *std::max_element(sums.begin(), sums.end());
          };
          const auto found = split_layers(layers, schedule, costs);
          BOOST_REQUIRE_NO_THROW(check_split(found, layers, 2 * ranks));
          std::vector<int> split;
          for_each_split(layers, 2 * ranks, split, [&] {
            BOOST_REQUIRE(largest(found) <= largest(split));
            ++cases;
          });
        }
  BOOST_TEST(cases > 10000);
  // By hand: 20 layers' worth on 4 ranks, 4 of them the head; rank 0 has 1 + 1 + 4, the others 4 or 5.
  const auto v = make_schedule(ScheduleKind::Zbv, 4, 2, 8);
  BOOST_CHECK((split_layers(16, v, {1, 0, 4}) == std::vector{1, 2, 2, 2, 2, 3, 3, 1}));
  BOOST_CHECK((split_layers(16, v, {}) == std::vector{2, 2, 2, 2, 2, 2, 2, 2}));
  BOOST_CHECK_EXCEPTION(split_layers(7, v, {}), Error, is_config_error);
}

BOOST_AUTO_TEST_CASE(other_schedules_balance_their_virtual_stages) {
  for (const auto& [kind, chunks] :
       {std::pair{ScheduleKind::OneFOneB, 1}, {ScheduleKind::Interleaved, 2}, {ScheduleKind::ZbH1, 1}}) {
    const auto schedule = make_schedule(kind, 4, chunks, 8);
    BOOST_CHECK(split_layers(29, schedule, {1, 0, 3}) == split_layers(29, 4 * chunks, {1, 0, 3}));
  }
  BOOST_CHECK(split_layers(9, make_schedule(ScheduleKind::Zbv, 1, 2, 2), {1, 0, 3}) ==
              split_layers(9, 2, {1, 0, 3}));
}

BOOST_AUTO_TEST_CASE(splits_by_hand) {
  using Split = std::vector<int>;
  BOOST_CHECK((split_layers(32, 4, {}) == Split{8, 8, 8, 8}));
  BOOST_CHECK((split_layers(10, 4, {}) == Split{2, 3, 3, 2}));
  BOOST_CHECK((split_layers(9, 4, {}) == Split{2, 2, 3, 2}));
  BOOST_CHECK((split_layers(7, 1, {1, 5, 5}) == Split{7}));
  BOOST_CHECK((split_layers(3, 3, {1, 50, 50}) == Split{1, 1, 1}));
  // A head as dear as two layers.
  BOOST_CHECK((split_layers(30, 4, {1, 0, 2}) == Split{8, 8, 8, 6}));
  BOOST_CHECK((split_layers(12, 2, {1, 0, 4}) == Split{8, 4}));
}

BOOST_AUTO_TEST_CASE(too_few_layers_are_refused) {
  BOOST_CHECK_EXCEPTION(split_layers(7, 8, {}), Error, is_config_error);
  const auto usage = [](const Error& e) { return e.kind() == ErrorKind::Usage; };
  BOOST_CHECK_EXCEPTION(split_layers(7, 0, {}), Error, usage);
  BOOST_CHECK_EXCEPTION(split_layers(7, 2, {0, 0, 0}), Error, usage);
  BOOST_CHECK_EXCEPTION(split_layers(7, 2, {1, -1, 0}), Error, usage);
}

BOOST_AUTO_TEST_CASE(written_splits_are_checked) {
  BOOST_CHECK_NO_THROW(check_split({3, 1, 4}, 8, 3));
  BOOST_CHECK_EXCEPTION(check_split({3, 5}, 8, 3), Error, is_config_error);
  BOOST_CHECK_EXCEPTION(check_split({4, 0, 4}, 8, 3), Error, is_config_error);
  BOOST_CHECK_EXCEPTION(check_split({4, 4, 4}, 8, 3), Error, is_config_error);
  BOOST_CHECK_EXCEPTION(check_split({9, -2, 1}, 8, 3), Error, is_config_error);
}
