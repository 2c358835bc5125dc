// base/: errors, digests, quantiles, counter-based random numbers, dtype conversion.
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "base/dtype.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/quantile.h"
#include "base/rng.h"

using namespace hearth;

BOOST_AUTO_TEST_CASE(error_says_kind_exit_code_and_details) {
  Error error(ErrorKind::BadInput, "shard is short");
  error.with("file", "a.h5");
  BOOST_TEST(std::string(error.what()) == "shard is short  [kind=BadInput exit=4]\n  file         a.h5");
}

BOOST_AUTO_TEST_CASE(quantiles_lie_between_the_nearest_values) {
  const std::vector<double> values = {5, 1, 4, 2, 3};
  BOOST_TEST(quantile(values, 0.0) == 1.0);
  BOOST_TEST(quantile(values, 0.5) == 3.0);
  BOOST_TEST(quantile(values, 1.0) == 5.0);
  BOOST_TEST(quantile(values, 0.125) == 1.5);
  BOOST_TEST(quantile({7.0}, 0.95) == 7.0);
}

BOOST_AUTO_TEST_CASE(xxh3_matches_the_published_vectors) {  // xxhsum -H2 of the empty input
  BOOST_TEST(xxh3_128_hex("") == "99aa06d3014798d86001c324468d497f");
  Xxh3Stream stream;
  stream.update("ab");
  stream.update("c");
  BOOST_TEST(stream.hex128() == xxh3_128_hex("abc"));
}

BOOST_AUTO_TEST_CASE(philox_matches_random123) {  // kat_vectors of Random123: philox4x32 10
  const std::array<uint32_t, 4> zeros{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  BOOST_TEST(philox4x32({0, 0, 0, 0}, {0, 0}) == zeros, boost::test_tools::per_element());
  const std::array<uint32_t, 4> ones{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  BOOST_TEST(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == ones, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(normal_has_mean_zero_and_variance_one) {
  const CounterRng rng(7, "weights");
  const int n = 200000;
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal(static_cast<uint64_t>(i));
    sum += x;
    squares += x * x;
  }
  BOOST_TEST(std::abs(sum / n) <= 5 / std::sqrt(n));  // five standard errors
  BOOST_TEST(std::abs(squares / n - 1) <= 5 * std::sqrt(2.0 / n));
}

BOOST_AUTO_TEST_CASE(half_types_round_trip_and_round_to_even) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_fp16 = fp16_to_float(half), from_bf16 = bf16_to_float(half);
    if (!std::isnan(from_fp16)) BOOST_REQUIRE(float_to_fp16(from_fp16) == half);
    if (!std::isnan(from_bf16)) BOOST_REQUIRE(float_to_bf16(from_bf16) == half);
  }
  BOOST_TEST(float_to_fp16(65519.996f) == 0x7bff);
  BOOST_TEST(float_to_fp16(65520.0f) == 0x7c00);
  BOOST_TEST(std::isnan(fp16_to_float(float_to_fp16(std::nanf("")))));
  BOOST_TEST(float_to_bf16(1.00390625f) == 0x3f80);  // exactly between: to even
  BOOST_TEST(float_to_bf16(1.01171875f) == 0x3f82);
}

BOOST_AUTO_TEST_CASE(checked_arithmetic_refuses_overflow) {
  BOOST_CHECK_THROW(checked_mul(int64_t{1} << 62, 4), Error);
  BOOST_CHECK_THROW(checked_cast<int32_t>(int64_t{1} << 31), Error);
}
