// Positions of the ranks and what of the causal, document-masked square each computes, against the definition
// of the mask, pair by pair.
#include <boost/test/unit_test.hpp>
#include <map>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/context/context_attention.h"

using namespace hearth;

namespace {

using Starts = std::vector<std::vector<int32_t>>;

// Random borders: one sequence without any, one where about half of the positions begin a document, the rest
// between.
Starts random_starts(int64_t batch, int64_t sequence, uint64_t seed) {
  const CounterRng rng(seed, uint64_t{5});
  Starts starts;
  for (int64_t b = 0; b < batch; ++b) {
    starts.emplace_back();
    const double density =
        0.5 * static_cast<double>(b) / static_cast<double>(std::max<int64_t>(batch - 1, 1));
    for (int64_t p = 0; p < sequence; ++p)
      if (rng.uniform(static_cast<uint64_t>(b * sequence + p)) < density)
        starts.back().push_back(static_cast<int32_t>(p));
  }
  return starts;
}

ContextLayout layout_of(const Starts& starts, int64_t sequence, int64_t size, int64_t rank) {
  return make_context_layout(starts, sequence, size, rank, at::kCPU, at::kFloat);
}

// (sequence, query position, key position) -> how often it is computed.
using Pairs = std::map<std::array<int64_t, 3>, int>;

Pairs wanted_pairs(const Starts& starts, int64_t sequence) {
  Pairs pairs;
  for (size_t b = 0; b < starts.size(); ++b) {
    int64_t begin = 0;
    for (int64_t query = 0; query < sequence; ++query) {
      if (std::count(starts[b].begin(), starts[b].end(), query) > 0) begin = query;
      for (int64_t key = begin; key <= query; ++key) pairs[{static_cast<int64_t>(b), query, key}] = 1;
    }
  }
  return pairs;
}

void add_causal(Pairs& pairs, const context::PackedDocuments& documents,
                const std::vector<int64_t>& positions) {
  auto ranges = documents.ranges;
  if (ranges.empty())
    for (int64_t b = 0; b < documents.batch; ++b) ranges.push_back({b * documents.rows, documents.rows});
  for (const auto& range : ranges)
    for (int64_t query = range.begin; query < range.begin + range.count; ++query)
      for (int64_t key = range.begin; key <= query; ++key)
        ++pairs[{query / documents.rows, positions[static_cast<size_t>(query % documents.rows)],
                 positions[static_cast<size_t>(key % documents.rows)]}];
}

int64_t add_ring(Pairs& pairs, const ContextLayout& layout) {
  const size_t before = pairs.size();
  const auto mine = context_positions(layout.sequence, layout.size, layout.rank);
  add_causal(pairs, layout.local_documents, mine);
  for (int64_t source = 0; source < layout.size; ++source) {
    const auto theirs = context_positions(layout.sequence, layout.size, source);
    for (const auto& r : layout.rectangles[static_cast<size_t>(source)])
      for (int64_t b = r.batch_begin; b < r.batch_begin + r.batch_count; ++b)
        for (int64_t q = r.query_begin; q < r.query_begin + r.query_count; ++q)
          for (int64_t k = r.key_begin; k < r.key_begin + r.key_count; ++k)
            ++pairs[{b, mine.at(static_cast<size_t>(q)), theirs.at(static_cast<size_t>(k))}];
  }
  return static_cast<int64_t>(pairs.size() - before);
}

}  // namespace

BOOST_AUTO_TEST_CASE(positions_are_zigzag) {
  BOOST_TEST((context_positions(8, 2, 0) == std::vector<int64_t>{0, 1, 6, 7}));
  BOOST_TEST((context_positions(8, 2, 1) == std::vector<int64_t>{2, 3, 4, 5}));
  BOOST_TEST((context_positions(3, 1, 0) == std::vector<int64_t>{0, 1, 2}));
  for (int64_t size = 1; size <= 8; ++size) {
    std::vector<int> held(static_cast<size_t>(6 * size));
    for (int64_t rank = 0; rank < size; ++rank) {
      const auto positions = context_positions(6 * size, size, rank);
      BOOST_TEST(std::is_sorted(positions.begin(), positions.end()));
      for (const int64_t p : positions) ++held.at(static_cast<size_t>(p));
    }
    BOOST_TEST((held == std::vector<int>(static_cast<size_t>(6 * size), 1)));
  }
}

BOOST_AUTO_TEST_CASE(every_allowed_pair_is_computed_once_and_no_other) {
  for (int64_t size = 1; size <= 5; ++size)
    for (const int64_t chunk : {1, 2, 5})
      for (const uint64_t seed : {1u, 2u, 3u}) {
        const int64_t sequence = 2 * size * chunk;
        const Starts starts = random_starts(4, sequence, seed);
        const Pairs want = wanted_pairs(starts, sequence);
        Pairs ring;
        for (int64_t rank = 0; rank < size; ++rank) add_ring(ring, layout_of(starts, sequence, size, rank));
        BOOST_TEST((ring == want), "ring, " << size << " ranks, chunk " << chunk << ", seed " << seed);
        Pairs whole;
        add_causal(whole, layout_of(starts, sequence, size, 0).whole_documents,
                   context_positions(sequence, 1, 0));
        BOOST_TEST((whole == want), "whole, " << size << " ranks, chunk " << chunk << ", seed " << seed);
      }
}

BOOST_AUTO_TEST_CASE(without_borders_the_load_is_equal_and_the_batch_is_one_block) {
  for (int64_t size = 2; size <= 5; ++size)
    for (int64_t rank = 0; rank < size; ++rank) {
      const auto layout = layout_of(Starts(3, {0}), 8 * size, size, rank);
      Pairs pairs;
      // 3 sequences, chunks of 4: the causal triangle of 8 own rows, and 2 x 4 x 4 pairs with every other
      // rank.
      BOOST_TEST(add_ring(pairs, layout) == 3 * (8 * 9 / 2 + (size - 1) * 32));
      BOOST_TEST(layout.local_documents.ranges.empty());
      for (int64_t source = 0; source < size; ++source)
        BOOST_TEST(layout.rectangles[static_cast<size_t>(source)].size() == (source == rank ? 0u : 1u));
    }
}

BOOST_AUTO_TEST_CASE(row_orders_are_inverse) {
  const auto layout = layout_of(Starts(2, {0}), 12, 3, 1);
  const auto* by_rank = layout.rows_by_rank.const_data_ptr<int64_t>();
  const auto* by_position = layout.rows_by_position.const_data_ptr<int64_t>();
  BOOST_TEST_REQUIRE(layout.rows_by_rank.numel() == 24);
  for (int64_t i = 0; i < 24; ++i) BOOST_TEST(by_rank[by_position[i]] == i);
  // Rank 1, sequence 1, local row 2: the first row of chunk 4.
  BOOST_TEST(by_rank[1 * 8 + 1 * 4 + 2] == 12 + 8);
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_is_a_config_error) {
  const auto is_config = [](const Error& e) { return e.kind() == ErrorKind::Config; };
  BOOST_CHECK_EXCEPTION(context_positions(10, 2, 0), Error, is_config);
  BOOST_CHECK_EXCEPTION(context_positions(2, 2, 0), Error, is_config);
  BOOST_CHECK_EXCEPTION(context_positions(0, 1, 0), Error, is_config);
  BOOST_CHECK_EXCEPTION(layout_of(Starts(1, {0}), 20, 3, 0), Error, is_config);
  const auto is_usage = [](const Error& e) { return e.kind() == ErrorKind::Usage; };
  BOOST_CHECK_EXCEPTION(context_positions(8, 2, 2), Error, is_usage);
  BOOST_CHECK_EXCEPTION(layout_of(Starts(1, {0, 8}), 8, 2, 0), Error, is_usage);
  BOOST_CHECK_EXCEPTION(layout_of(Starts(1, {5, 3}), 8, 2, 0), Error, is_usage);
  BOOST_TEST(all_to_all_fits(8, 4, 4));
  BOOST_TEST(!all_to_all_fits(8, 2, 4));
  BOOST_TEST(!all_to_all_fits(6, 4, 4));
}
