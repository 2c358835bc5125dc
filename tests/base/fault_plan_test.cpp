// base/fault_plan.h: the text form, and which match fires.
#include "base/fault_plan.h"

#include <boost/test/unit_test.hpp>

#include "base/error.h"

using namespace hearth;

BOOST_AUTO_TEST_CASE(plan_is_parsed) {
  BOOST_TEST(parse_fault_plan("").empty());
  BOOST_TEST(parse_fault_plan(" ; ").empty());
  const auto plan = parse_fault_plan("kill@rank=1,step=17; sleep @ point=data.next, ms=20 ;nan@count=3");
  BOOST_REQUIRE(plan.size() == 3u);
  BOOST_TEST((plan[0] == FaultRule{.action = FaultAction::Kill, .rank = 1, .step = 17, .point = ""}));
  BOOST_TEST(
      (plan[1] ==
       FaultRule{.action = FaultAction::Sleep, .rank = {}, .step = {}, .point = "data.next", .ms = 20}));
  BOOST_TEST(
      (plan[2] == FaultRule{.action = FaultAction::Nan, .rank = {}, .step = {}, .point = "", .count = 3}));
}

BOOST_AUTO_TEST_CASE(wrong_words_are_usage_errors_that_name_the_word) {
  for (const std::string text : {"explode@rank=1", "kill@rnk=1", "kill@rank=x", "kill@rank=-1", "kill@rank=",
                                 "kill@count=0", "kill@rank=99999999999999999999", "@", "kill@rank"}) {
    BOOST_CHECK_EXCEPTION(parse_fault_plan(text), Error, [](const Error& error) {
      return error.kind() == ErrorKind::Usage && error.message().find("fault plan") == 0;
    });
  }
}

BOOST_AUTO_TEST_CASE(rule_fires_at_its_rank_step_point_and_count_only) {
  FaultInjector injector(parse_fault_plan("nan@rank=1,step=5,point=fwd,count=2"), 1);
  FaultInjector other(parse_fault_plan("nan@rank=1,step=5,point=fwd,count=2"), 0);
  for (int64_t step = 4; step <= 6; ++step) {
    injector.set_step(step);
    other.set_step(step);
    for (int pass = 1; pass <= 3; ++pass) {
      BOOST_TEST(!injector.hit("data.next"));
      BOOST_TEST(!other.hit("fwd"));
      const auto fired = injector.hit("fwd");
      BOOST_TEST((fired == FaultAction::Nan) == (step == 5 && pass == 2));
    }
  }
}

BOOST_AUTO_TEST_CASE(every_keeps_firing_and_throw_throws) {
  FaultInjector injector(parse_fault_plan("throw@point=step.end,count=2,every=1"), 0);
  BOOST_TEST(!injector.hit("step.end"));
  BOOST_CHECK_THROW(injector.hit("step.end"), Error);
  BOOST_CHECK_THROW(injector.hit("step.end"), Error);
  FaultInjector none;
  BOOST_TEST(!none.hit("step.end"));
}
