// The replay against the published formulas for bubbles and peak activations, over many (P, V, M) and costs.
// Costs are small whole numbers, so doubles are exact and equality is asked for.
#include "parallel/pipeline/simulator.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <functional>

#include "base/error.h"

using namespace hearth;

namespace {

template <class F>
void for_each_times(F f) {
  for (const double forward : {1., 2., 3., 5.})
    for (const double input : {1., 2., 3., 5.})
      for (const double weight : {1., 2., 3., 5.}) f(StageTimes{forward, input, weight});
}

Simulation run(ScheduleKind kind, int stages, int chunks, int micros, const StageTimes& times,
               double overlap = 0) {
  const auto schedule = make_schedule(kind, stages, chunks, micros);
  ScheduleCosts costs = uniform_costs(schedule, times);
  costs.overlap = overlap;
  const Simulation result = simulate(schedule, costs);
  // Every rank has the same work, so the bubble is the same on all.
  for (const SimulatedRank& rank : result.ranks)
    if (overlap == 0) BOOST_REQUIRE(rank.idle == result.bubble());
  return result;
}

std::vector<int> peaks(const Simulation& simulation) {
  std::vector<int> out;
  for (const auto& rank : simulation.ranks) out.push_back(rank.peak_activations);
  return out;
}

std::string point(int stages, int chunks, int micros, const StageTimes& t) {
  return fmt::format("P {} V {} M {} f {} b {} w {}", stages, chunks, micros, t.forward, t.backward_input,
                     t.backward_weight);
}

}  // namespace

BOOST_AUTO_TEST_CASE(bubble_of_1f1b) {
  for_each_times([](const StageTimes& t) {
    for (int p = 1; p <= 8; ++p)
      for (int m = 1; m <= 3 * p + 1; ++m) {
        const Simulation s = run(ScheduleKind::OneFOneB, p, 1, m, t);
        const double expected = (p - 1) * (t.forward + t.backward_input + t.backward_weight);
        BOOST_REQUIRE_MESSAGE(s.bubble() == expected, point(p, 1, m, t) << ": " << s.bubble());
        for (int r = 0; r < p; ++r) BOOST_REQUIRE(peaks(s)[static_cast<size_t>(r)] == std::min(p - r, m));
      }
  });
}

BOOST_AUTO_TEST_CASE(bubble_of_interleaved) {
  for_each_times([](const StageTimes& t) {
    for (int p = 1; p <= 8; ++p)
      for (int v = 2; v <= 4; ++v)
        for (int m = p; m <= 3 * p; m += p) {
          const Simulation s = run(ScheduleKind::Interleaved, p, v, m, t);
          const double full_forward = v * t.forward,
                       full_backward = v * (t.backward_input + t.backward_weight);
          BOOST_REQUIRE_MESSAGE(s.bubble() * v == (p - 1) * (full_forward + full_backward),
                                point(p, v, m, t) << ": " << s.bubble());
          for (int r = 0; r < p; ++r)
            BOOST_REQUIRE(peaks(s)[static_cast<size_t>(r)] ==
                          std::min(m * v, 2 * (p - r - 1) + (v - 1) * p + 1));
        }
  });
}

BOOST_AUTO_TEST_CASE(bubble_of_zb_h1) {
  for_each_times([](const StageTimes& t) {
    for (int p = 1; p <= 8; ++p)
      for (int m = 1; m <= 3 * p + 1; ++m) {
        const Simulation s = run(ScheduleKind::ZbH1, p, 1, m, t);
        const double least = std::min({t.forward, t.backward_input, t.backward_weight});
        if (m >= p) {
          // Published where the weight gradient is the least of the three.
          BOOST_REQUIRE_MESSAGE(s.bubble() == (p - 1) * (t.forward + t.backward_input - least),
                                point(p, 1, m, t) << ": " << s.bubble());
        } else {
          // Fewer micros than ranks: nothing to fill all gaps with, but never worse than 1f1b.
          BOOST_REQUIRE(s.bubble() <= run(ScheduleKind::OneFOneB, p, 1, m, t).bubble());
        }
        for (const int peak : peaks(s)) BOOST_REQUIRE(peak == std::min(p, m));
      }
  });
}

BOOST_AUTO_TEST_CASE(bubble_of_zbv) {
  for (int p = 1; p <= 8; ++p)
    for (int m = 1; m <= 3 * p + 1; ++m) {
      const Simulation s = run(ScheduleKind::Zbv, p, 2, m, {2, 2, 2});
      if (m >= 2 * p - 1) {
        for (const SimulatedRank& rank : s.ranks) BOOST_REQUIRE(rank.idle_inside == 0);
        BOOST_REQUIRE(s.bubble() == (p - 1) * 2);  // the offset of the last rank
      }
      for (const int peak : peaks(s)) BOOST_REQUIRE(peak <= std::min(2 * p, 2 * m));
      if (m >= 2 * p - 1)
        for (const int peak : peaks(s)) BOOST_REQUIRE(peak == 2 * p);
    }
}

BOOST_AUTO_TEST_CASE(bubble_of_dualpipev) {
  for_each_times([](const StageTimes& t) {
    for (int p = 1; p <= 8; ++p)
      for (int m = 2 * p; m <= 3 * p + 1; ++m)
        for (const double overlap : {0., .5, 1.}) {
          const Simulation s = run(ScheduleKind::DualPipeV, p, 2, m, t, overlap);
          for (const int peak : peaks(s)) BOOST_REQUIRE(peak == 2 * p + 1);
          const double backward = t.backward_input + t.backward_weight;
          const double both = std::max(t.forward, backward) + (1 - overlap) * std::min(t.forward, backward);
          if (t.forward == t.backward_input && t.backward_weight <= t.backward_input)
            BOOST_REQUIRE_MESSAGE(s.bubble() == (p - 1) * (both + backward - 3 * t.backward_weight),
                                  point(p, 2, m, t) << ": " << s.bubble());
          if (t.forward >= t.backward_input && t.backward_input >= t.backward_weight)
            BOOST_REQUIRE_MESSAGE(s.bubble() == (p - 1) * (both + t.forward - 2 * t.backward_weight),
                                  point(p, 2, m, t) << ": " << s.bubble());
        }
  });
}

// No kind: any list that is complete and can run passes the check and is replayed. All forwards, then all
// backwards, in either order (Huang et al. 2019, "GPipe", whose bubble is (P - 1) / (M + P - 1) of the time).
BOOST_AUTO_TEST_CASE(bubble_of_gpipe_written_by_hand) {
  using enum ActionKind;
  const std::vector<Action> first_first{{Forward, 0, 0},  {Forward, 0, 1},  {Forward, 0, 2},
                                        {Forward, 0, 3},  {Backward, 0, 0}, {Backward, 0, 1},
                                        {Backward, 0, 2}, {Backward, 0, 3}};
  const std::vector<Action> last_first{{Forward, 0, 0},  {Forward, 0, 1},  {Forward, 0, 2},
                                       {Forward, 0, 3},  {Backward, 0, 3}, {Backward, 0, 2},
                                       {Backward, 0, 1}, {Backward, 0, 0}};
  for (const auto& list : {first_first, last_first}) {
    const PipelineSchedule schedule{
        .kind = ScheduleKind::OneFOneB, .stages = 2, .chunks = 1, .micros = 4, .ranks = {list, list}};
    BOOST_REQUIRE_NO_THROW(check_schedule(schedule));
    BOOST_REQUIRE_NO_THROW(check_schedule(with_transfers(schedule)));
    for_each_times([&](const StageTimes& t) {
      const Simulation s = simulate(schedule, uniform_costs(schedule, t));
      const double micro = t.forward + t.backward_input + t.backward_weight;
      BOOST_REQUIRE(s.total == (4 + 2 - 1) * micro);
      BOOST_REQUIRE(s.bubble() == (2 - 1) * micro);
      BOOST_REQUIRE_MESSAGE(s.bubble_fraction() == (2 - 1) / (4 + 2 - 1.),
                            point(2, 1, 4, t) << ": " << s.bubble_fraction());
      BOOST_REQUIRE((peaks(s) == std::vector{4, 4}));
    });
  }
}

BOOST_AUTO_TEST_CASE(one_rank_never_idles) {
  for (const ScheduleKind kind : schedule_kinds()) {
    const int chunks = implied_chunks(kind) > 0 ? implied_chunks(kind) : 3;
    const Simulation s = run(kind, 1, chunks, 5, {3, 2, 4});
    BOOST_TEST(s.total == 5 * chunks * 9);
    BOOST_TEST(s.bubble_fraction() == 0);
    BOOST_TEST(s.ranks[0].idle_inside == 0);
  }
}

BOOST_AUTO_TEST_CASE(fraction_is_idle_over_all) {
  const Simulation s = run(ScheduleKind::OneFOneB, 4, 1, 8, {1, 1, 1});
  BOOST_TEST(s.total == 8 * 3 + 9);
  BOOST_TEST(s.bubble_fraction() == 9. / 33);
}

// By hand, P = 2, M = 1: F on rank 0 ends at 2, arrives at 7, F and B on rank 1 end at 12, the gradient
// arrives at 17.
BOOST_AUTO_TEST_CASE(transfers_take_time) {
  const auto schedule = make_schedule(ScheduleKind::OneFOneB, 2, 1, 1);
  ScheduleCosts costs = uniform_costs(schedule, {2, 2, 1});
  costs.transfer = 5;
  const Simulation s = simulate(schedule, costs);
  BOOST_TEST(s.ranks[1].actions[0].start == 7);
  BOOST_TEST(s.ranks[0].actions[1].start == 17);
  BOOST_TEST(s.total == 20);
  BOOST_TEST(s.ranks[0].idle_inside == 15);
  BOOST_TEST(s.ranks[1].idle_inside == 0);
  BOOST_TEST(s.ranks[1].idle == 15);
}

// Two activations posted faster than the link carries them queue up.
BOOST_AUTO_TEST_CASE(transfers_of_a_channel_queue) {
  const auto schedule = make_schedule(ScheduleKind::OneFOneB, 3, 1, 2);
  ScheduleCosts costs = uniform_costs(schedule, {1, 1, 1});
  costs.times[1] = costs.times[2] = {0, 0, 0};
  costs.transfer = 4;
  const Simulation s = simulate(schedule, costs);
  BOOST_TEST(s.ranks[1].actions[0].start == 5);  // posted at 1
  BOOST_TEST(s.ranks[1].actions[1].start == 9);  // posted at 2, the link is free at 5
}

// By hand: F 0 and F 1 of rank 2 run in 2..6; its first gradient is ready at 7, after F 0 and B 0 of rank 3
// (4..7), so it waits once, for 1. From then on it never does: the 6 of a round give rank 3 its 3 in time,
// and rank 1, two micros ahead, has had its own. So rank 2 ends at 2 + 96 + 1 = 99, and the last gradient
// takes 2 on each of ranks 1 and 0: 103.
BOOST_AUTO_TEST_CASE(uneven_stages_slow_the_whole) {
  const auto schedule = make_schedule(ScheduleKind::OneFOneB, 4, 1, 16);
  ScheduleCosts costs = uniform_costs(schedule, {1, 1, 1});
  costs.times[2] = {2, 2, 2};
  const Simulation s = simulate(schedule, costs);
  BOOST_TEST(s.ranks[2].busy == 16 * 6);
  BOOST_TEST(s.ranks[2].actions.front().start == 2);
  BOOST_TEST(s.ranks[2].actions[2].start == 7);  // its first backward
  BOOST_TEST(s.ranks[2].idle_inside == 1);
  BOOST_TEST(s.ranks[2].actions.back().end == 99);
  BOOST_TEST(s.total == 103);
  BOOST_TEST(s.ranks[0].busy == 16 * 3);
  BOOST_TEST(s.ranks[0].idle == s.total - 48);
}

BOOST_AUTO_TEST_CASE(lists_with_transfers_give_the_same) {
  const auto schedule = make_schedule(ScheduleKind::Zbv, 3, 2, 7);
  const ScheduleCosts costs = uniform_costs(schedule, {1, 2, 1});
  BOOST_TEST(simulate(schedule, costs).total == simulate(with_transfers(schedule), costs).total);
}

BOOST_AUTO_TEST_CASE(peak_bytes) {
  const auto bytes_of = [](ScheduleKind kind, int stages, int chunks, int micros, ActivationBytes bytes) {
    const auto schedule = make_schedule(kind, stages, chunks, micros);
    ScheduleCosts costs = uniform_costs(schedule, {1, 1, 1});
    costs.activations.assign(static_cast<size_t>(schedule.virtual_stages()), bytes);
    std::vector<int64_t> out;
    for (const auto& rank : simulate(schedule, costs).ranks) out.push_back(rank.peak_bytes);
    return out;
  };
  using Peaks = std::vector<int64_t>;
  // A full Backward frees all at once, whatever the weight share.
  BOOST_CHECK((bytes_of(ScheduleKind::OneFOneB, 4, 1, 8, {10, 6}) == Peaks{40, 30, 20, 10}));
  // zb_h1, rank r: P - r whole ones while r more wait for their weight gradients.
  BOOST_CHECK((bytes_of(ScheduleKind::ZbH1, 4, 1, 8, {10, 6}) == Peaks{40, 36, 32, 28}));
  BOOST_CHECK((bytes_of(ScheduleKind::ZbH1, 4, 1, 8, {10, 0}) == Peaks{40, 30, 20, 10}));
  BOOST_CHECK((bytes_of(ScheduleKind::Zbv, 2, 2, 8, {10, 10}) == Peaks{40, 40}));
  BOOST_CHECK((bytes_of(ScheduleKind::DualPipeV, 2, 2, 8, {10, 10}) == Peaks{50, 50}));
  // Different sizes per virtual stage: the last rank of the V holds the middle two.
  const auto v = make_schedule(ScheduleKind::Zbv, 1, 2, 1);
  ScheduleCosts costs = uniform_costs(v, {1, 1, 1});
  costs.activations = {{100, 50}, {7, 3}};
  BOOST_TEST(simulate(v, costs).ranks[0].peak_bytes == 107);
}

BOOST_AUTO_TEST_CASE(actions_of_a_rank_do_not_overlap) {
  const auto schedule = make_schedule(ScheduleKind::DualPipeV, 4, 2, 9);
  ScheduleCosts costs = uniform_costs(schedule, {1, 1, .5});
  costs.overlap = .25;
  costs.transfer = .125;
  for (const auto& rank : simulate(schedule, costs).ranks) {
    double busy = 0;
    for (size_t i = 0; i < rank.actions.size(); ++i) {
      busy += rank.actions[i].end - rank.actions[i].start;
      if (i > 0) BOOST_REQUIRE(rank.actions[i].start >= rank.actions[i - 1].end);
    }
    BOOST_TEST(busy == rank.busy);
  }
}

BOOST_AUTO_TEST_CASE(costs_that_do_not_fit_are_refused) {
  const auto schedule = make_schedule(ScheduleKind::OneFOneB, 2, 1, 2);
  const auto refused = [&](const std::function<void(ScheduleCosts&)>& damage) {
    ScheduleCosts costs = uniform_costs(schedule, {1, 1, 1});
    damage(costs);
    BOOST_CHECK_EXCEPTION(simulate(schedule, costs), Error,
                          [](const Error& e) { return e.kind() == ErrorKind::Usage; });
  };
  refused([](auto& c) { c.times.pop_back(); });
  refused([](auto& c) { c.activations.resize(1); });
  refused([](auto& c) { c.times[0].forward = -1; });
  refused([](auto& c) { c.times[0].backward_weight = std::nan(""); });
  refused([](auto& c) { c.transfer = std::nan(""); });
  refused([](auto& c) { c.overlap = 1.5; });
}
