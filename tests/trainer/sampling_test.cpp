// Choosing the next token: which one, which set, and how often.
#include "trainer/sampling.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/rng.h"

using namespace hearth;

namespace {

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3.0));
  return logits;
}

// Tokens drawn by `count` equidistant values of the uniform number: exact up to one draw at each border.
std::vector<int64_t> draw_evenly(std::span<const float> logits, const SamplingOptions& options,
                                 int64_t count) {
  std::vector<int64_t> drawn(logits.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    const double uniform = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
    ++drawn[static_cast<size_t>(sample_token(logits, options, uniform))];
  }
  return drawn;
}

std::set<size_t> kept_set(const std::vector<double>& probabilities, double top_p) {
  const auto drawn = draw_evenly(logits_of(probabilities), {.temperature = 1.0, .top_p = top_p}, 1000);
  std::set<size_t> kept;
  for (size_t i = 0; i < drawn.size(); ++i)
    if (drawn[i] > 0) kept.insert(i);
  return kept;
}

const std::vector<double> kProbabilities{0.05, 0.5, 0.15, 0.3};

}  // namespace

BOOST_AUTO_TEST_CASE(greedy_takes_the_largest_and_among_equals_the_lowest_id) {
  const std::vector<float> logits{-1.0f, 4.0f, 2.0f, 4.0f, 4.0f};
  for (const double uniform : {0.0, 0.5, 0.999999}) BOOST_TEST(sample_token(logits, {}, uniform) == 1);
  const std::vector<float> flat(7, -2.5f);
  BOOST_TEST(sample_token(flat, {}, 0.9) == 0);
  const std::vector<float> one{-3.0f};
  BOOST_TEST(sample_token(one, {.temperature = 1.0, .top_p = 0.5}, 0.9) == 0);
}

BOOST_AUTO_TEST_CASE(a_low_temperature_is_greedy_and_a_high_one_is_uniform) {
  const auto logits = logits_of(kProbabilities);
  const auto cold = draw_evenly(logits, {.temperature = 1e-3}, 1000);
  BOOST_TEST(cold[1] == 1000);
  for (const int64_t count : draw_evenly(logits, {.temperature = 1e6}, 1000))
    BOOST_TEST(std::abs(count - 250) <= 1);
}

BOOST_AUTO_TEST_CASE(temperature_divides_the_logits) {
  const auto logits = logits_of({0.2, 0.8});
  // At temperature 2 the odds of 4 become their root.
  const auto drawn = draw_evenly(logits, {.temperature = 2.0}, 3000);
  BOOST_TEST(std::abs(drawn[0] - 1000) <= 1);
}

BOOST_AUTO_TEST_CASE(top_p_keeps_the_smallest_set_that_reaches_it) {
  BOOST_TEST((kept_set(kProbabilities, 1e-9) == std::set<size_t>{1}));
  BOOST_TEST((kept_set(kProbabilities, 0.49) == std::set<size_t>{1}));
  BOOST_TEST((kept_set(kProbabilities, 0.51) == std::set<size_t>{1, 3}));
  BOOST_TEST((kept_set(kProbabilities, 0.79) == std::set<size_t>{1, 3}));
  BOOST_TEST((kept_set(kProbabilities, 0.81) == std::set<size_t>{1, 2, 3}));
  BOOST_TEST((kept_set(kProbabilities, 0.96) == std::set<size_t>{0, 1, 2, 3}));
  BOOST_TEST((kept_set(kProbabilities, 1.0) == std::set<size_t>{0, 1, 2, 3}));
}

BOOST_AUTO_TEST_CASE(top_p_keeps_the_proportions_of_what_it_keeps) {
  const auto drawn = draw_evenly(logits_of(kProbabilities), {.temperature = 1.0, .top_p = 0.79}, 8000);
  BOOST_TEST(std::abs(drawn[1] - 5000) <= 1);
  BOOST_TEST(std::abs(drawn[3] - 3000) <= 1);
}

BOOST_AUTO_TEST_CASE(random_draws_have_the_softmax_distribution) {
  constexpr int64_t kDraws = 20000;
  const CounterRng rng(/*seed=*/42, "sampling_test");
  const auto logits = logits_of(kProbabilities);
  std::vector<double> drawn(kProbabilities.size(), 0.0);
  for (uint64_t i = 0; i < kDraws; ++i)
    ++drawn[static_cast<size_t>(sample_token(logits, {.temperature = 1.0}, rng.uniform(i)))];
  double chi_square = 0.0;
  for (size_t i = 0; i < drawn.size(); ++i) {
    const double want = kProbabilities[i] * kDraws;
    chi_square += (drawn[i] - want) * (drawn[i] - want) / want;
  }
  // Three degrees of freedom: a correct sampler exceeds 21.1 once in 10^4 seeds, and this seed is fixed.
  BOOST_TEST(chi_square <= 21.1);
  BOOST_TEST(chi_square > 0.0);
}

BOOST_AUTO_TEST_CASE(logits_that_are_not_finite_are_refused) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()})
    for (const double temperature : {0.0, 1.0}) {
      const std::vector<float> logits{1.0f, bad, 2.0f};
      BOOST_CHECK_EXCEPTION(sample_token(logits, {.temperature = temperature}, 0.5), Error,
                            [](const Error& e) { return e.kind() == ErrorKind::Numeric; });
    }
  BOOST_CHECK_EXCEPTION(sample_token({}, {}, 0.5), Error,
                        [](const Error& e) { return e.kind() == ErrorKind::Usage; });
}
