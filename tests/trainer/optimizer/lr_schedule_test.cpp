// Learning rates at the points where they are known by hand, and that the horizon alone decides.
#include "trainer/optimizer/lr_schedule.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "base/error.h"

using namespace hearth;

namespace {

// Peak 1 and floor 0.1; warm-up to step 10, decay to step 110.
OptimizerConfig config(const std::string& style) {
  OptimizerConfig c;
  c.lr = 1.0;
  c.min_lr = 0.1;
  c.lr_decay_style = style;
  c.lr_warmup_iters = 10;
  c.lr_decay_iters = 110;
  c.lr_wsd_decay_iters = 20;
  return c;
}

void check_rate(const OptimizerConfig& c, int64_t step, double want) {
  const double got = learning_rate(c, /*train_iters=*/7777, step);
  BOOST_CHECK_MESSAGE(std::abs(got - want) <= 1e-14,
                      c.lr_decay_style << ", step " << step << ": got " << got << ", want " << want);
}

}  // namespace

BOOST_AUTO_TEST_CASE(warm_up_is_linear_and_the_same_for_every_style) {
  for (const char* style : {"cosine", "linear", "constant", "wsd"}) {
    const OptimizerConfig c = config(style);
    for (int64_t step = 0; step < 10; ++step) check_rate(c, step, static_cast<double>(step + 1) / 10.0);
    check_rate(c, 10, 1.0);
  }
}

BOOST_AUTO_TEST_CASE(no_warm_up_starts_at_the_peak) {
  for (const char* style : {"cosine", "linear", "constant", "wsd"}) {
    OptimizerConfig c = config(style);
    c.lr_warmup_iters = 0;
    check_rate(c, 0, 1.0);
  }
}

BOOST_AUTO_TEST_CASE(cosine) {
  const OptimizerConfig c = config("cosine");
  check_rate(c, 35, 0.1 + 0.9 * (0.5 + std::sqrt(0.125)));  // a quarter: (1 + cos 45) / 2
  check_rate(c, 60, 0.55);
  check_rate(c, 85, 0.1 + 0.9 * (0.5 - std::sqrt(0.125)));
}

BOOST_AUTO_TEST_CASE(linear) {
  const OptimizerConfig c = config("linear");
  check_rate(c, 35, 0.775);
  check_rate(c, 60, 0.55);
  check_rate(c, 109, 0.109);
}

BOOST_AUTO_TEST_CASE(constant_never_falls) {
  const OptimizerConfig c = config("constant");
  for (const int64_t step : {10, 60, 109, 110, 100000}) check_rate(c, step, 1.0);
}

BOOST_AUTO_TEST_CASE(wsd_is_flat_and_then_falls_to_the_floor_at_the_horizon) {
  const OptimizerConfig c = config("wsd");
  for (const int64_t step : {10, 50, 89, 90}) check_rate(c, step, 1.0);
  check_rate(c, 91, 0.1 + 0.9 * 19 / 20);
  check_rate(c, 100, 0.55);
  check_rate(c, 109, 0.1 + 0.9 / 20);
  OptimizerConfig no_decay = c;
  no_decay.lr_wsd_decay_iters = 0;
  check_rate(no_decay, 109, 1.0);
  check_rate(no_decay, 110, 0.1);
}

BOOST_AUTO_TEST_CASE(decaying_styles_stay_at_the_floor_behind_the_horizon) {
  for (const char* style : {"cosine", "linear", "wsd"})
    for (const int64_t step : {110, 111, 100000}) check_rate(config(style), step, 0.1);
}

BOOST_AUTO_TEST_CASE(where_a_run_is_cut_changes_nothing) {
  for (const char* style : {"cosine", "linear", "constant", "wsd"}) {
    const OptimizerConfig c = config(style);
    for (int64_t step = 0; step < 130; ++step)
      BOOST_TEST(learning_rate(c, 40, step) == learning_rate(c, 500, step));
  }
}

BOOST_AUTO_TEST_CASE(without_lr_decay_iters_the_horizon_is_train_iters) {
  for (const char* style : {"cosine", "linear", "wsd"}) {
    OptimizerConfig open = config(style);
    open.lr_decay_iters.reset();
    for (int64_t step = 0; step < 130; ++step)
      BOOST_TEST(learning_rate(open, 110, step) == learning_rate(config(style), 7777, step));
  }
}

BOOST_AUTO_TEST_CASE(decay_never_rises) {
  for (const char* style : {"cosine", "linear", "wsd"}) {
    double last = std::numeric_limits<double>::infinity();
    for (int64_t step = 10; step < 130; ++step) {
      const double rate = learning_rate(config(style), 7777, step);
      BOOST_TEST(rate <= last);
      last = rate;
    }
  }
}

BOOST_AUTO_TEST_CASE(a_warm_up_longer_than_the_horizon_ends_at_the_floor) {
  OptimizerConfig c = config("cosine");
  c.lr_warmup_iters = 200;
  check_rate(c, 150, 151.0 / 200.0);
  check_rate(c, 200, 0.1);
}

BOOST_AUTO_TEST_CASE(an_unknown_style_is_refused) {
  BOOST_CHECK_EXCEPTION(learning_rate(config("square"), 100, 50), Error,
                        [](const Error& e) { return e.kind() == ErrorKind::Config; });
}
