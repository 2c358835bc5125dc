// data/packing: every document once, no bin over its size, never worse than the plain rule that it
// implements.
#include "data/packing.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <numeric>
#include <random>

using namespace hearth;

namespace {

std::vector<uint32_t> some_lengths(size_t count, uint32_t capacity, uint32_t seed) {
  std::mt19937 draw(seed);
  std::lognormal_distribution<double> length(std::log(capacity / 6.0),
                                             0.9);  // as conversations are: a long tail
  std::vector<uint32_t> lengths(count);
  for (auto& l : lengths) l = std::clamp<uint32_t>(static_cast<uint32_t>(length(draw)), 1, capacity);
  return lengths;
}

// The rule as the paper states it, in quadratic time: longest first, into the fullest bin that has room.
size_t plain_best_fit_decreasing(std::vector<uint32_t> lengths, uint32_t capacity) {
  std::sort(lengths.rbegin(), lengths.rend());
  std::vector<uint32_t> left;
  for (const uint32_t length : lengths) {
    size_t best = left.size();
    for (size_t i = 0; i < left.size(); ++i)
      if (left[i] >= length && (best == left.size() || left[i] < left[best])) best = i;
    if (best == left.size()) left.push_back(capacity);
    left[best] -= length;
  }
  return left.size();
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_document_is_in_one_bin_and_no_bin_overflows) {
  for (const uint32_t capacity : {1u, 2u, 7u, 512u, 4096u}) {
    const auto lengths = some_lengths(3000, capacity, capacity);
    const auto bins = pack_best_fit(lengths, capacity);
    std::vector<int> seen(lengths.size(), 0);
    uint32_t previous = 0;
    for (size_t b = 0; b < bins.size(); ++b) {
      uint64_t total = 0;
      BOOST_REQUIRE(!bins[b].empty());
      BOOST_REQUIRE(std::is_sorted(bins[b].begin(), bins[b].end()));
      BOOST_REQUIRE((b == 0 || bins[b].front() > previous));
      previous = bins[b].front();
      for (const uint32_t i : bins[b]) ++seen[i], total += lengths[i];
      BOOST_REQUIRE(total <= capacity);
    }
    BOOST_TEST(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
    BOOST_TEST((pack_best_fit(lengths, capacity) == bins));
  }
}

BOOST_AUTO_TEST_CASE(as_few_bins_as_the_plain_rule) {
  for (uint32_t seed = 0; seed < 5; ++seed) {
    const auto lengths = some_lengths(2000, 1000, seed);
    const auto bins = pack_best_fit(lengths, 1000);
    BOOST_TEST(bins.size() == plain_best_fit_decreasing(lengths, 1000));
    const auto total = std::accumulate(lengths.begin(), lengths.end(), uint64_t{0});
    const uint64_t fewest = (total + 999) / 1000;
    BOOST_TEST_MESSAGE(bins.size() << " bins, no packing needs fewer than " << fewest);
    // 11/9 is proven for the worst case; a few bins more than the bound by volume is what short documents
    // give.
    BOOST_TEST(bins.size() <= fewest + fewest / 50 + 1);
  }
}

BOOST_AUTO_TEST_CASE(full_bins_and_single_documents) {
  BOOST_TEST(pack_best_fit({}, 8).empty());
  const std::vector<uint32_t> full{8, 8, 8};
  BOOST_TEST(pack_best_fit(full, 8).size() == 3u);
  const std::vector<uint32_t> fit{3, 5, 4, 4};
  const auto bins = pack_best_fit(fit, 8);
  BOOST_TEST(bins.size() == 2u);
  BOOST_TEST((bins[0] == std::vector<uint32_t>{0, 1}));
}

BOOST_AUTO_TEST_CASE(a_pair_is_cut_fairly) {
  const auto check = [](int64_t a, int64_t b, int64_t capacity, int64_t first, int64_t second) {
    const PairLengths cut = cut_pair({a, b}, capacity);
    BOOST_TEST(cut.first == first);
    BOOST_TEST(cut.second == second);
  };
  check(3, 4, 10, 3, 4);  // fits
  check(100, 100, 10, 5, 5);
  check(100, 100, 11, 5, 6);
  check(100, 2, 10, 8, 2);  // what the other leaves
  check(2, 100, 10, 2, 8);
  check(5, 6, 10, 5, 5);
  check(12, 0, 10, 10, 0);  // a single document
}
