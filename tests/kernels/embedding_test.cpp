// Embedding against its reference: few ids over many tokens, so that rows collide and cross block borders.
#include "kernels/reference/embedding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

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

BOOST_DATA_TEST_CASE(backward_adds_in_token_order,
                     bdata::make({1, 7, 300, 2000}) * bdata::make({1, 7, 64, 264}) * bdata::make({1, 5, 999}),
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
      // The plain path adds in any order on CUDA (atomics): one rounding per token of a partial sum near
      // sqrt(tokens).
      const double any_order = path == KernelPath::Plain ? 2 * 0x1p-24 * tokens : 0.0;
      check_close("dtable", got, plain, want, any_order);
    }
  });
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

}  // namespace
}  // namespace hearth
