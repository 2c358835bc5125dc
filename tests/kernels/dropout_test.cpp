// Dropout against its reference: the same elements dropped, bit for bit the same results. Widths straddle the
// 16-byte vector, a draw's four columns and one block's tile.
#include "kernels/reference/dropout.h"

#include <ATen/ops/full.h>

#include "kernels/dropout_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

constexpr uint64_t kSeed = 0x1234567890abcdef;

// Row keys far apart, as samples of a long run have them.
at::Tensor row_keys(int64_t rows) {
  at::Tensor keys = at::empty({rows}, at::TensorOptions().dtype(at::kLong));
  for (int64_t r = 0; r < rows; ++r) keys.data_ptr<int64_t>()[r] = (r % 2 == 0 ? r : r << 40) + 7;
  return keys.to(device_under_test());
}

BOOST_DATA_TEST_CASE(drops_what_the_reference_drops,
                     bdata::make({1, 3, 37}) * bdata::make({1, 3, 4, 5, 7, 8, 9, 1023, 1024, 2048, 2056}),
                     rows, cols) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 91), keys = row_keys(rows);
    const DropoutMask mask = dropout_mask(kSeed, 0.3, cols, 0);
    const at::Tensor want =
        tensor_of(reference::dropout(values<T>(x), values<int64_t>(keys), kSeed, mask.threshold, cols, 0),
                  {rows, cols});
    BOOST_TEST(dropout_op(x, keys, mask).cpu().to(at::kDouble).equal(want));
    at::Tensor sum = random_tensor({rows, cols}, dtype, 92);
    const at::Tensor before = sum.clone();
    dropout_accumulate_op(x, keys, mask, sum);
    const auto in_fp64 =
        reference::dropout(values<double>(x), values<int64_t>(keys), kSeed, mask.threshold, cols, 0);
    auto want_sum = values<double>(before);
    for (size_t i = 0; i < want_sum.size(); ++i) want_sum[i] += in_fp64[i];
    auto plain = values<T>(before);
    for (size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<double>(plain[i]) + in_fp64[i];
    check_close("sum", sum, plain, want_sum);
  });
}

BOOST_DATA_TEST_CASE(a_slice_of_a_matrix_drops_what_the_whole_drops, bdata::make({0, 1, 3, 4, 8, 33, 512}),
                     first) {
  const int64_t rows = 5, columns = 1030;
  const at::Tensor x = random_tensor({rows, columns}, at::kBFloat16, 93), keys = row_keys(rows);
  const at::Tensor whole = dropout_op(x, keys, dropout_mask(kSeed, 0.5, columns, 0));
  for (const int64_t width : {int64_t{1}, int64_t{64}, columns - first}) {
    const at::Tensor part = x.narrow(1, first, width).contiguous();
    BOOST_TEST(bit_equal(dropout_op(part, keys, dropout_mask(kSeed, 0.5, columns, first)),
                         whole.narrow(1, first, width)));
  }
  BOOST_TEST(bit_equal(dropout_op(x.narrow(0, 2, 2).contiguous(), keys.narrow(0, 2, 2).contiguous(),
                                  dropout_mask(kSeed, 0.5, columns, 0)),
                       whole.narrow(0, 2, 2)));
}

// The number of dropped elements is binomial: within 5 standard deviations, which chance misses once in 1.7
// million times. Neighbouring columns, rows and seeds are no more alike than chance.
BOOST_DATA_TEST_CASE(the_share_that_is_dropped_is_p, bdata::make({0.05, 0.1, 0.5, 0.9}), p) {
  const int64_t rows = 512, cols = 1024;
  const at::Tensor ones =
      at::full({rows, cols}, 1.0, at::TensorOptions().dtype(at::kFloat)).to(device_under_test());
  at::Tensor keys = at::empty({rows}, at::TensorOptions().dtype(at::kLong));
  for (int64_t r = 0; r < rows; ++r) keys.data_ptr<int64_t>()[r] = r;
  keys = keys.to(device_under_test());
  const auto dropped = [&](uint64_t seed) {
    return dropout_op(ones, keys, dropout_mask(seed, p, cols, 0)).eq(0).to(at::kDouble).cpu();
  };
  const at::Tensor a = dropped(1), b = dropped(2);
  const auto check = [&](const char* what, const at::Tensor& events, double chance) {
    const auto n = static_cast<double>(events.numel());
    const double error = std::abs(events.sum().item<double>() - n * chance);
    BOOST_TEST(error <= 5 * std::sqrt(n * chance * (1 - chance)),
               what << ": off by " << error << " of " << n);
  };
  const double q = dropout_mask(1, p, cols, 0).threshold / 65536.0;
  BOOST_TEST(std::abs(q - p) <= 0x1p-17);
  check("dropped", a, q);
  check("two seeds", a.mul(b), q * q);
  // Pairs that share no element, so that they are independent.
  check("two columns", a.view({rows, cols / 2, 2}).prod(2), q * q);
  check("two draws", a.view({rows, cols / 8, 2, 4}).prod(2), q * q);
  check("two rows", a.view({rows / 2, 2, cols}).prod(1), q * q);
}

BOOST_AUTO_TEST_CASE(nothing_is_dropped_at_0_and_nan_stays_nan) {
  at::Tensor x = random_tensor({3, 16}, at::kFloat, 94);
  BOOST_TEST(bit_equal(dropout_op(x, row_keys(3), dropout_mask(kSeed, 0.0, 16, 0)), x));
  x.fill_(std::nanf(""));
  const at::Tensor y = dropout_op(x, row_keys(3), dropout_mask(kSeed, 0.25, 16, 0)).cpu();
  BOOST_TEST(y.isnan().logical_or(y.eq(0)).all().item<bool>());
  BOOST_TEST(y.isnan().any().item<bool>());
}

BOOST_AUTO_TEST_CASE(wrong_arguments_are_refused) {
  const at::Tensor x = random_tensor({2, 8}, at::kFloat, 95), keys = row_keys(2);
  const DropoutMask mask = dropout_mask(kSeed, 0.5, 8, 0);
  BOOST_CHECK_THROW(dropout_mask(kSeed, 1.0, 8, 0), Error);
  BOOST_CHECK_THROW(dropout_mask(kSeed, std::nan(""), 8, 0), Error);
  BOOST_CHECK_THROW(dropout_op(x, row_keys(3), mask), Error);
  BOOST_CHECK_THROW(dropout_op(x, keys.to(at::kInt), mask), Error);
  BOOST_CHECK_THROW(dropout_op(x, keys, dropout_mask(kSeed, 0.5, 8, 4)), Error);
  at::Tensor other = random_tensor({2, 8}, at::kBFloat16, 96);
  BOOST_CHECK_THROW(dropout_accumulate_op(x, keys, mask, other), Error);
}

}  // namespace
}  // namespace hearth
