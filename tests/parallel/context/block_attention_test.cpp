// Blocks of attention in fp64: the CPU kernel against the matrix products, which are written independently,
// and packed documents against their own blocks. Tolerance: sums of at most 70 + 24 products of values below
// 16, each rounded by 2^-53, over a few terms: 2^-53 x 94 x 16 x 16 = 2.7e-12.
#include "parallel/context/block_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "base/rng.h"
#include "parallel/context/plain_attention.h"
#include "tests/compare.h"

using namespace hearth;
using namespace hearth::context;
using at::Tensor;
namespace bdata = boost::unit_test::data;

namespace {

constexpr double kTolerance = 2.7e-12;
constexpr int64_t kQueries = 70, kWidth = 24, kBatch = 2;

Tensor random(at::IntArrayRef shape, uint64_t seed) {
  Tensor out = at::empty(shape, at::kDouble);
  const CounterRng rng(seed, uint64_t{4});
  for (int64_t i = 0; i < out.numel(); ++i) out.data_ptr<double>()[i] = rng.normal(static_cast<uint64_t>(i));
  return out;
}

// Views into one [.., H + 2K, W] tensor where the lengths allow, as in use.
struct Block {
  Tensor q, k, v, dout;
  BlockMask mask;
  Block(int64_t heads, int64_t kv_heads, int64_t keys, BlockMask block_mask) : mask(block_mask) {
    q = random({kBatch, kQueries, heads + 3, kWidth}, 1).narrow(2, 1, heads);
    const Tensor kv = random({kBatch, keys, 2 * kv_heads, kWidth}, 2);
    k = kv.narrow(2, 0, kv_heads);
    v = kv.narrow(2, kv_heads, kv_heads);
    dout = random({kBatch, kQueries, heads, kWidth}, 3);
  }
};

void check(const Tensor& got, const Tensor& want) {
  const auto diff = testing::compare(got, want, kTolerance);
  BOOST_TEST(diff.ok(), diff);
}

}  // namespace

BOOST_DATA_TEST_CASE(cpu_kernel_equals_matrix_products,
                     bdata::make({4, 2, 1}) * bdata::make({0, 1}) * bdata::make({1, 5000, 1 << 24}), kv_heads,
                     causal, max_scores) {
  const Block b(4, kv_heads, causal ? kQueries : 33, causal ? BlockMask::Causal : BlockMask::Full);
  const auto want = plain_attend(b.q, b.k, b.v, b.mask, max_scores), got = attend(b.q, b.k, b.v, b.mask);
  check(got.out_BLHW, want.out_BLHW);
  check(got.lse_BHL, want.lse_BHL);
  // As if other blocks had been merged in: any larger log-sum-exp, any output.
  const AttendedBlock merged{random(got.out_BLHW.sizes(), 5),
                             got.lse_BHL + random(got.lse_BHL.sizes(), 6).abs()};
  const auto grads = attend_backward(b.dout, b.q, b.k, b.v, merged, b.mask);
  const auto wanted = plain_attend_backward(b.dout, b.q, b.k, b.v, merged, b.mask, max_scores);
  check(grads.dq, wanted.dq);
  check(grads.dk, wanted.dk);
  check(grads.dv, wanted.dv);
}

// One document a sequence, packed as ranges, is the dense case; a split document is its parts.
BOOST_AUTO_TEST_CASE(packed_documents_equal_their_blocks) {
  const Block b(4, 2, kQueries, BlockMask::Causal);
  const auto rows = [](const Tensor& x) { return x.flatten(0, 1); };
  const auto pack = [](std::vector<RowRange> ranges) {
    return make_packed_documents(std::move(ranges), kBatch, kQueries, at::kCPU, at::kDouble);
  };
  const auto dense = pack({{0, kQueries}, {kQueries, kQueries}});
  BOOST_TEST(dense.ranges.empty());
  const auto cut = pack({{0, 1}, {1, 40}, {41, kQueries - 41}, {kQueries, kQueries}});
  BOOST_TEST(cut.longest == kQueries);
  const auto all = attend_documents(rows(b.q), rows(b.k), rows(b.v), dense);
  const auto got = attend_documents(rows(b.q), rows(b.k), rows(b.v), cut);
  const auto all_grads = attend_documents_backward(rows(b.dout), rows(b.q), rows(b.k), rows(b.v), all, dense);
  const auto grads = attend_documents_backward(rows(b.dout), rows(b.q), rows(b.k), rows(b.v), got, cut);
  const auto second = [](const Tensor& x) { return x.narrow(0, kQueries, kQueries); };
  check(second(got.out_NHW), second(all.out_NHW));
  check(second(grads.dk), second(all_grads.dk));
  for (const auto& [begin, count] : cut.ranges) {
    const auto part = [&, first = begin, length = count](const Tensor& x) {
      return rows(x).narrow(0, first, length).unsqueeze(0);
    };
    const auto want = plain_attend(part(b.q), part(b.k), part(b.v), BlockMask::Causal);
    check(got.out_NHW.narrow(0, begin, count), want.out_BLHW[0]);
    check(got.lse_HN.narrow(1, begin, count), want.lse_BHL[0]);
    const auto wanted =
        plain_attend_backward(part(b.dout), part(b.q), part(b.k), part(b.v), want, BlockMask::Causal);
    check(grads.dq.narrow(0, begin, count), wanted.dq[0]);
    check(grads.dk.narrow(0, begin, count), wanted.dk[0]);
    check(grads.dv.narrow(0, begin, count), wanted.dv[0]);
  }
}
