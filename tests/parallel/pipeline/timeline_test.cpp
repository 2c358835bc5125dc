// The picture of a replay against one drawn by hand, and against the replay for every kind.
#include "parallel/pipeline/timeline.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <sstream>

using namespace hearth;

namespace {

std::string text(ScheduleKind kind, int stages, int chunks, int micros, const StageTimes& times) {
  const auto schedule = make_schedule(kind, stages, chunks, micros);
  return timeline_text(schedule, simulate(schedule, uniform_costs(schedule, times)));
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

BOOST_AUTO_TEST_CASE(drawn_by_hand) {
  BOOST_TEST(text(ScheduleKind::OneFOneB, 2, 1, 3, {1, 1, 1}) ==
             "  0 | F0 F1 ..... B0--- F2 B1--- .. B2---\n"
             "  1 | .. F0 B0--- F1 B1--- F2 B2--- .....\n");
  // Times in another unit, and unequal: a W takes three characters.
  BOOST_TEST(text(ScheduleKind::ZbH1, 2, 1, 2, {4, 4, 2}) ==
             "  0 | F0--- F1--- ..... B0--- W0 .. B1--- W1\n"
             "  1 | ..... F0--- B0--- F1--- B1--- W0 W1 ..\n");
}

// A stage whose weight gradients take next to no time: the others set the scale, and it shows letters.
BOOST_AUTO_TEST_CASE(short_actions_show_their_letter) {
  const auto schedule = make_schedule(ScheduleKind::ZbH1, 2, 1, 4);
  ScheduleCosts costs = uniform_costs(schedule, {10, 10, 10});
  costs.times[1] = {10, 10, 1};
  const std::string drawn = timeline_text(schedule, simulate(schedule, costs));
  const std::string last = drawn.substr(drawn.rfind("  1 | "));
  BOOST_TEST(count(drawn.substr(0, drawn.find('\n')), "W3") == 1U);
  BOOST_TEST(count(last, "W") == 4U);
  for (const char* label : {"W0", "W1", "W2", "W3"}) BOOST_TEST(count(last, label) == 0U);
  BOOST_TEST(drawn.size() < 200U);
}

// With equal costs every action stands in the text once, by name, and as wide as its time.
BOOST_AUTO_TEST_CASE(every_action_is_drawn_once) {
  for (const ScheduleKind kind : schedule_kinds()) {
    const int chunks = implied_chunks(kind) > 0 ? implied_chunks(kind) : 3;
    const auto schedule = make_schedule(kind, 4, chunks, 12);
    const Simulation s = simulate(schedule, uniform_costs(schedule, {1, 1, 1}));
    std::istringstream lines(timeline_text(schedule, s));
    for (const SimulatedRank& rank : s.ranks) {
      std::string line;
      BOOST_REQUIRE(std::getline(lines, line));
      const auto actions = [&](ActionKind action) {
        return static_cast<size_t>(
            std::count_if(rank.actions.begin(), rank.actions.end(),
                          [&](const SimulatedAction& a) { return a.action.kind == action; }));
      };
      const size_t both = actions(ActionKind::ForwardBackward);
      const auto named = [&](char letter) {  // with a number behind it
        size_t found = 0;
        for (size_t at = line.find(letter); at != std::string::npos; at = line.find(letter, at + 1))
          found += at + 1 < line.size() && line[at + 1] >= '0' && line[at + 1] <= '9' ? 1 : 0;
        return found;
      };
      BOOST_TEST(named('F') == actions(ActionKind::Forward) + both);
      BOOST_TEST(named('B') == actions(ActionKind::Backward) + actions(ActionKind::BackwardInput) + both);
      BOOST_TEST(named('W') == actions(ActionKind::BackwardWeight));
    }
  }
}

BOOST_AUTO_TEST_CASE(svg_has_a_box_and_a_tooltip_for_each_action) {
  const auto schedule = make_schedule(ScheduleKind::DualPipeV, 2, 2, 5);
  const Simulation s = simulate(schedule, uniform_costs(schedule, {1, 1, 1}));
  const std::string svg = timeline_svg(schedule, s);
  BOOST_TEST(svg.rfind("<svg ", 0) == 0U);
  BOOST_TEST(svg.substr(svg.size() - 7) == "</svg>\n");
  size_t actions = 0;
  for (const auto& rank : s.ranks)
    for (const auto& a : rank.actions) {
      ++actions;
      BOOST_TEST(svg.find("<title>" + describe(a.action) + ": ") != std::string::npos);
    }
  BOOST_TEST(count(svg, "<title>") == actions + 5);  // all five kinds are used, and the legend names them
  BOOST_TEST(count(svg, "<rect ") == actions + 5 + 2 + 1);
}
