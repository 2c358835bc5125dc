// Embedding against its reference: few ids over many tokens, so that rows collide and cross block borders.
#include "kernels/reference/embedding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "kernels/embedding_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

BOOST_DATA_TEST_CASE(forward_copies_rows_exactly,
                     bdata::make({1, 7, 300}) * bdata::make({1, 7, 8, 64, 264, 1030}), tokens, width) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor table = random_tensor({50, width}, dtype, 111);
    const at::Tensor ids = random_ids(tokens, 50, tokens == 7 ? at::kInt : at::kLong, 112);
    const auto want =
        reference::embedding_forward(values<double>(table), values<int64_t>(ids), static_cast<size_t>(width));
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const Diff diff =
          compare(embedding_forward_op(table, ids, path), tensor_of(want, {tokens, width}), 0.0);
      BOOST_TEST(diff.ok(), diff);
    }
  }
}

// Tokens of one id straddle the chunks of 32 that CUDA sums apart, and 32 of those.
BOOST_DATA_TEST_CASE(backward_adds_in_a_fixed_order,
                     bdata::make({1, 7, 31, 32, 33, 64, 65, 300, 1024, 1025, 1057, 2000}) *
                         bdata::make({1, 7, 64, 264}) * bdata::make({1, 5, 999}),
                     tokens, width, vocab) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor dy = random_tensor({tokens, width}, dtype, 113),
                     ids = random_ids(tokens, vocab, at::kLong, 114);
    const at::Tensor before = random_tensor({vocab, width}, at::kFloat, 115);
    std::vector<double> want = values<double>(before);
    std::vector<float> plain = values<float>(before);
    const auto where = values<int64_t>(ids);
    reference::embedding_backward(values<double>(dy), where, static_cast<size_t>(width), want);
    reference::embedding_backward(values<T>(dy), where, static_cast<size_t>(width), plain);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor got = before.clone();
      embedding_backward_op(dy, ids, got, path);
      // Neither path adds in the reference's order on CUDA (by chunks; by atomics): one rounding per token of
      // a partial sum near sqrt(tokens).
      check_close("dtable", got, plain, want, 2 * 0x1p-24 * tokens);
    }
  });
}

// The sum is rounded to bf16 once, with what was there before.
BOOST_DATA_TEST_CASE(backward_into_bf16_rounds_once,
                     bdata::make({1, 33, 300, 2000}) * bdata::make({1, 7, 64, 264, 1030, 1032}) *
                         bdata::make({1, 5, 999}),
                     tokens, width, vocab) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor dy = random_tensor({tokens, width}, dtype, 130),
                     ids = random_ids(tokens, vocab, at::kLong, 131);
    const at::Tensor before = random_tensor({vocab, width}, at::kBFloat16, 132);
    std::vector<double> want = values<double>(before);
    std::vector<float> sums = values<float>(before);
    const auto where = values<int64_t>(ids);
    reference::embedding_backward(values<double>(dy), where, static_cast<size_t>(width), want);
    reference::embedding_backward(values<T>(dy), where, static_cast<size_t>(width), sums);
    const std::vector<reference::Bf16> plain(sums.begin(), sums.end());
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor got = before.clone();
      embedding_backward_op(dy, ids, got, path);
      check_close("dtable", got, plain, want);
    }
  });
}

// One id for most tokens, as padding has it, beside ids of a few tokens; the long row's chunks meet in one
// place.
BOOST_AUTO_TEST_CASE(a_frequent_id_is_summed_in_chunks) {
  for (const int64_t tokens : {4000, 40000}) {
    const at::Tensor dy = random_tensor({tokens, 40}, at::kBFloat16, 133);
    at::Tensor ids = random_ids(tokens, 300, at::kInt, 134);
    ids.narrow(0, tokens / 10, tokens * 8 / 10).fill_(77);
    at::Tensor got = at::zeros({300, 40}, dy.options().dtype(at::kFloat)), again = got.clone();
    std::vector<double> want(300 * 40);
    std::vector<float> plain(300 * 40);
    reference::embedding_backward(values<double>(dy), values<int64_t>(ids), 40, want);
    reference::embedding_backward(values<float>(dy), values<int64_t>(ids), 40, plain);
    embedding_backward_op(dy, ids, got);
    check_close("dtable", got, plain, want);
    embedding_backward_op(dy, ids, again);
    BOOST_TEST(bit_equal(got, again));
  }
}

BOOST_AUTO_TEST_CASE(repeats_and_thread_counts_give_the_same_bits) {
  const at::Tensor dy = random_tensor({3000, 96}, at::kFloat, 116),
                   ids = random_ids(3000, 40, at::kLong, 117);
  std::vector<at::Tensor> results;
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 2}) {
    at::set_num_threads(count);
    results.push_back(at::zeros({40, 96}, dy.options()));
    embedding_backward_op(dy, ids, results.back());
  }
  at::set_num_threads(threads);
  BOOST_TEST((bit_equal(results[0], results[1]) && bit_equal(results[1], results[2])));
}

BOOST_AUTO_TEST_CASE(an_id_outside_the_table_is_an_error_or_nan) {
  const at::Tensor table = random_tensor({4, 8}, at::kFloat, 118),
                   ids = random_ids(3, 1, at::kLong, 119).add(4);
  if (device_under_test().is_cpu()) {
    BOOST_CHECK_THROW(embedding_forward_op(table, ids), Error);
  } else {
    BOOST_TEST(embedding_forward_op(table, ids).isnan().all().item<bool>());
    at::Tensor accum = at::zeros({4, 8}, table.options());
    embedding_backward_op(random_tensor({3, 8}, at::kFloat, 120), ids, accum);
    BOOST_TEST(accum.eq(0).all().item<bool>());
  }
}

// Shares of 16 rows: 50 ids take four, of which the last has rows that no id of the vocabulary reaches. Every
// fifth id is on no share, those next to the shares' ends included.
constexpr int64_t kIds = 50, kShareRows = 16, kShares = 4;

at::Tensor ids_with_foreign(int64_t tokens, at::ScalarType dtype) {
  const std::vector<int64_t> foreign = {-1, kShareRows * kShares, -100, 2'000'000'000};
  at::Tensor ids = random_ids(tokens, kIds, dtype, 121);
  for (int64_t n = 0; n < tokens; n += 5)
    ids.select(0, n).fill_(foreign[static_cast<size_t>(n / 5) % foreign.size()]);
  for (int64_t n = 1; n < tokens; n += 5) ids.select(0, n).fill_(n % kShares * kShareRows - (n / 5) % 2);
  return ids;
}

BOOST_DATA_TEST_CASE(range_forward_gives_rows_or_zeros,
                     bdata::make({1, 7, 300}) * bdata::make({1, 7, 8, 64, 264, 1030}), tokens, width) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor table = random_tensor({kShareRows * kShares, width}, dtype, 122);
    const at::Tensor ids = ids_with_foreign(tokens, tokens == 7 ? at::kInt : at::kLong);
    const auto columns = static_cast<size_t>(width);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor sum = at::zeros({tokens, width}, table.options());
      for (int64_t first = 0; first < kShareRows * kShares; first += kShareRows) {
        const at::Tensor share = table.narrow(0, first, kShareRows);
        const auto want =
            reference::embedding_forward(values<double>(share), values<int64_t>(ids), columns, first);
        const at::Tensor got = embedding_range_forward_op(share, ids, first, path);
        const Diff diff = compare(got, tensor_of(want, {tokens, width}), 0.0);
        BOOST_TEST(diff.ok(), diff);
        sum.add_(got);
      }
      // One share has the row and the others zeros, so an all-reduce of any order gives the whole table's
      // bits.
      const auto whole = reference::embedding_forward(values<double>(table), values<int64_t>(ids), columns);
      const Diff diff = compare(sum, tensor_of(whole, {tokens, width}), 0.0);
      BOOST_TEST(diff.ok(), diff);
    }
  }
}

BOOST_DATA_TEST_CASE(range_backward_adds_to_its_rows_only,
                     bdata::make({1, 7, 300, 2000}) * bdata::make({1, 7, 64, 264}), tokens, width) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor dy = random_tensor({tokens, width}, dtype, 123),
                     ids = ids_with_foreign(tokens, at::kLong);
    const at::Tensor before = random_tensor({kShareRows, width}, at::kFloat, 124);
    const auto where = values<int64_t>(ids);
    const auto columns = static_cast<size_t>(width);
    for (int64_t first = 0; first < kShareRows * kShares; first += kShareRows) {
      std::vector<double> want = values<double>(before);
      std::vector<float> plain = values<float>(before);
      reference::embedding_backward(values<double>(dy), where, columns, want, first);
      reference::embedding_backward(values<T>(dy), where, columns, plain, first);
      for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
        at::Tensor got = before.clone();
        embedding_range_backward_op(dy, ids, first, got, path);
        const double any_order = path == KernelPath::Plain ? 2 * 0x1p-24 * tokens : 0.0;  // as above
        check_close("dtable", got, plain, want, any_order);
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(shares_of_the_gradient_have_the_bits_of_the_whole) {
  const at::Tensor dy = random_tensor({2000, 264}, at::kBFloat16, 125),
                   ids = random_ids(2000, kIds, at::kLong, 126);
  at::Tensor whole = at::zeros({kShareRows * kShares, 264}, dy.options().dtype(at::kFloat));
  embedding_backward_op(dy, ids, whole);
  for (int64_t first = 0; first < kShareRows * kShares; first += kShareRows) {
    at::Tensor share = at::zeros({kShareRows, 264}, whole.options());
    embedding_range_backward_op(dy, ids, first, share);
    BOOST_TEST(bit_equal(share, whole.narrow(0, first, kShareRows)));
  }
}

BOOST_AUTO_TEST_CASE(a_share_may_be_empty_but_not_start_below_zero) {
  const at::Tensor ids = random_ids(3, 4, at::kLong, 127), dy = random_tensor({3, 8}, at::kFloat, 128);
  at::Tensor table = random_tensor({4, 8}, at::kFloat, 129), empty = table.narrow(0, 0, 0);
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const at::Tensor out = embedding_range_forward_op(empty, ids, 4, path);
    BOOST_TEST((out.size(0) == 3 && out.size(1) == 8 && out.eq(0).all().item<bool>()));
    BOOST_CHECK_NO_THROW(embedding_range_backward_op(dy, ids, 4, empty, path));
  }
  BOOST_CHECK_THROW(embedding_range_forward_op(table, ids, -1), Error);
  BOOST_CHECK_THROW(embedding_range_backward_op(dy, ids, -1, table), Error);
}

}  // namespace
}  // namespace hearth
