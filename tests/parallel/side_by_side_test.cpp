// Turns are taken in one order, errors come out, and a transfer of one computation is under way while the
// other runs.
#include "parallel/side_by_side.h"

#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "mpi_fixture.h"

using namespace hearth;

namespace {

// Writes `letter` `count` times, with a turn after each.
std::function<void()> writer(SideBySide& sides, std::string& text, char letter, int count) {
  return [&sides, &text, letter, count] {
    for (int i = 0; i < count; ++i) {
      text += letter;
      sides.give_turn();
    }
    text += static_cast<char>(letter - 'a' + 'A');
  };
}

}  // namespace

BOOST_AUTO_TEST_CASE(turns_alternate_until_one_is_done) {
  SideBySide sides;
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::string even, first_longer, second_longer;
    sides.run(writer(sides, even, 'a', 3), writer(sides, even, 'b', 3));
    BOOST_TEST(even == "abababAB");
    sides.run(writer(sides, first_longer, 'a', 4), writer(sides, first_longer, 'b', 1));
    BOOST_TEST(first_longer == "abaBaaA");
    sides.run(writer(sides, second_longer, 'a', 0), writer(sides, second_longer, 'b', 2));
    BOOST_TEST(second_longer == "AbbB");
  }
}

BOOST_AUTO_TEST_CASE(outside_of_a_run_nobody_waits) {
  SideBySide sides;
  BOOST_CHECK_NO_THROW(sides.give_turn());
}

BOOST_AUTO_TEST_CASE(the_helper_is_prepared_once_and_turns_may_be_given_on_other_threads) {
  int entered = 0;
  SideBySide sides([&] { ++entered; });
  std::string text;
  for (int repeat = 0; repeat < 3; ++repeat)
    sides.run(writer(sides, text, 'a', 2),
              [&] { std::thread(writer(sides, text, 'b', 2)).join(); });  // as autograd does for a device
  BOOST_TEST(text == "ababABababABababAB");
  BOOST_TEST(entered == 1);
}

BOOST_AUTO_TEST_CASE(an_error_of_either_ends_both_and_the_next_run_is_well) {
  SideBySide sides;
  const auto fails = [&](const char* what) {
    return [&sides, what] {
      sides.give_turn();
      fail(ErrorKind::Numeric, "{} failed", what);
    };
  };
  bool ended = false;
  const auto goes_on = [&] {
    for (int i = 0; i < 1000; ++i) sides.give_turn();
    ended = true;
  };
  const auto says = [](const std::string& what) {
    return [what](const Error& error) {
      return error.kind() == ErrorKind::Numeric && error.message() == what + " failed";
    };
  };
  BOOST_CHECK_EXCEPTION(sides.run(fails("first"), goes_on), Error, says("first"));
  BOOST_CHECK_EXCEPTION(sides.run(goes_on, fails("second")), Error, says("second"));
  BOOST_CHECK_EXCEPTION(sides.run(fails("first"), fails("second")), Error, says("first"));
  BOOST_TEST(!ended);
  std::string text;
  sides.run(writer(sides, text, 'a', 1), writer(sides, text, 'b', 1));
  BOOST_TEST(text == "abAB");
}

// Each call is waited for at once, yet the other computation begins its own before.
BOOST_AUTO_TEST_CASE(calls_are_under_way_together) {
  struct Order : FlightRecorder::Observer {
    std::string text;
    std::vector<std::pair<uint64_t, char>> names;
    void begin(uint64_t id, const FlightRecorder::Call& call) override {
      names.emplace_back(id, call.site.front());
      text += call.site.front();
    }
    void issued(uint64_t) override {}
    void end(uint64_t id) override {
      for (const auto& [known, name] : names)
        if (known == id) text += static_cast<char>(name - 'a' + 'A');
    }
  };
  Job& job = hearth::test::job();
  const auto world = hearth::test::world_comm();
  const int ranks = world->size();
  SideBySide sides;
  const auto by_turns = sides.waiting_by_turns(*world);
  std::vector<float> a(1000, 1), b(1000, 2);
  Order order;
  job.recorder->observe(&order);
  const auto calls = [&](std::vector<float>& data, const char* site) {
    return [&, site] {
      for (int i = 0; i < 3; ++i)
        by_turns->all_reduce(data.data(), static_cast<int64_t>(data.size()), DType::F32, ReduceOp::Sum, site)
            ->wait();
    };
  };
  sides.run(calls(a, "a"), calls(b, "b"));
  job.recorder->observe(nullptr);
  const auto grown = static_cast<float>(ranks * ranks * ranks);
  BOOST_TEST((a == std::vector<float>(1000, grown) && b == std::vector<float>(1000, 2 * grown)));
  if (ranks == 1) return;  // a copy is done when it is made
  // When a call ends depends on the other rank; when it begins, on the turns alone.
  std::string begins;
  for (const char c : order.text)
    if (c == 'a' || c == 'b') begins += c;
  BOOST_TEST(begins == "ababab");
  BOOST_TEST(order.text.substr(0, 2) == "ab", order.text);
}
