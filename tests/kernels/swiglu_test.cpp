// SwiGLU against its fp64 reference. Widths straddle the 16-byte vector and one block's tile; odd ones take
// the scalar path because the second half of a row is then unaligned.
#include "kernels/reference/swiglu.h"

#include <ATen/ops/empty_like.h>

#include "kernels/swiglu_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

BOOST_DATA_TEST_CASE(forward_and_backward_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 3, 37}) * bdata::make({1, 4, 7, 8, 9, 255, 256, 264, 1536, 2056}), rows,
                     width) {
  const auto columns = static_cast<size_t>(width);
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor gu = random_tensor({rows, 2 * width}, dtype, 61, 3.0),
                     dh = random_tensor({rows, width}, dtype, 62);
    const auto want = reference::swiglu_forward(values<double>(gu), columns);
    const auto plain = reference::swiglu_forward(values<T>(gu), columns);
    const auto want_gradient = reference::swiglu_backward(values<double>(dh), values<double>(gu), columns);
    const auto plain_gradient = reference::swiglu_backward(values<T>(dh), values<T>(gu), columns);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      check_close("h", swiglu_forward_op(gu, path), plain, want);
      check_close("dgu", swiglu_backward_op(dh, gu, path), plain_gradient, want_gradient);
    }
  });
}

// One below, at and above the vector and a block's tile; the odd one takes the scalar path.
BOOST_DATA_TEST_CASE(outputs_in_place_have_the_bits_of_separate_ones,
                     bdata::make({1, 7, 8, 9, 2040, 2048, 2056}), width) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const at::Tensor gu = random_tensor({5, 2 * width}, dtype, 70, 3.0),
                       dh = random_tensor({5, width}, dtype, 71);
      const at::Tensor dgu = swiglu_backward_op(dh, gu, path), h = swiglu_forward_op(gu, path);
      at::Tensor beside = at::empty_like(gu), h_beside = at::empty_like(dh);
      swiglu_backward_out_op(dh, gu, beside, h_beside, path);
      BOOST_TEST((bit_equal(beside, dgu) && bit_equal(h_beside, h)));
      at::Tensor over_gu = gu.clone(), over_dh = dh.clone();
      swiglu_backward_out_op(over_dh, over_gu, over_gu, over_dh, path);
      BOOST_TEST((bit_equal(over_gu, dgu) && bit_equal(over_dh, h)));
    }
}

BOOST_AUTO_TEST_CASE(extreme_gates_saturate_and_nan_stays_nan) {
  at::Tensor gu = random_tensor({1, 8}, at::kFloat, 63);
  const float gates[] = {200.0f, -200.0f, 1e30f, std::nanf("")};
  for (int64_t i = 0; i < 4; ++i) {
    gu.select(1, i).fill_(gates[i]);
    gu.select(1, 4 + i).fill_(1.0);
  }
  const auto h = values<double>(swiglu_forward_op(gu));
  BOOST_TEST(h[0] == 200.0);
  BOOST_TEST(std::abs(h[1]) <= 1e-30);
  BOOST_TEST(h[2] == static_cast<double>(1e30f));
  BOOST_TEST(std::isnan(h[3]));
}

BOOST_AUTO_TEST_CASE(reference_backward_is_the_derivative_of_reference_forward) {
  const std::vector<double> gu = random_values(2 * 6, 64), dh = random_values(6, 65);
  check_gradient(
      "dgu", [&](const auto& v) { return weighted_sum(dh, reference::swiglu_forward(v, 3)); }, gu,
      reference::swiglu_backward(dh, gu, 3));
}

BOOST_AUTO_TEST_CASE(wrong_shapes_are_refused) {
  const at::Tensor gu = random_tensor({2, 8}, at::kFloat, 66);
  BOOST_CHECK_THROW(swiglu_forward_op(random_tensor({2, 7}, at::kFloat, 67)), Error);
  BOOST_CHECK_THROW(swiglu_backward_op(random_tensor({2, 8}, at::kFloat, 68), gu), Error);
  BOOST_CHECK_THROW(swiglu_backward_op(random_tensor({2, 4}, at::kBFloat16, 69), gu), Error);
  const at::Tensor dh = random_tensor({2, 4}, at::kFloat, 72);
  at::Tensor dgu = at::empty_like(gu);
  BOOST_CHECK_THROW(swiglu_backward_out_op(dh, gu, dgu, random_tensor({2, 3}, at::kFloat, 73)), Error);
  BOOST_CHECK_THROW(swiglu_backward_out_op(dh, gu, dgu, random_tensor({4, 2}, at::kFloat, 74).t()), Error);
}

}  // namespace
}  // namespace hearth
