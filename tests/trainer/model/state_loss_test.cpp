// Terms of the loss on states: values and gradients against autograd of the same formula in fp64, what
// counts, and rows that have no direction. Whole models with such terms: tests/integration/objectives.py.
#include "trainer/model/state_loss.h"

#include <ATen/Context.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/compare.h"

using namespace hearth;
using hearth::testing::compare;

namespace {

constexpr int64_t kRows = 5, kWidth = 48;
const at::TensorOptions kFp32 = at::TensorOptions().dtype(at::kFloat);

at::Tensor plain(const at::Tensor& x, const at::Tensor& t, StateLossKind kind) {
  if (kind == StateLossKind::Mse) return x.sub(t).square().mean(-1);
  return at::cosine_similarity(x, t, -1).neg().add(1.0);
}

}  // namespace

BOOST_DATA_TEST_CASE(value_and_gradient_are_those_of_the_formula, boost::unit_test::data::make({0, 1}),
                     number) {
  const auto kind = static_cast<StateLossKind>(number);
  at::manual_seed(3);
  const at::Tensor x = at::randn({kRows, kWidth}, kFp32).requires_grad_(true),
                   t = at::randn({kRows, kWidth}, kFp32), counts = at::tensor({1.0F, 0.0F, 1.0F, 1.0F, 0.0F}),
                   upstream = at::randn({kRows, kWidth}, kFp32);
  const at::Tensor sum = at::zeros({1}, kFp32);
  const StateTarget target{
      .layer = 1, .kind = kind, .weight = 0.3, .target_nD = t, .counts_n = counts, .sum = sum};
  const at::Tensor out = with_state_loss(x, target, StateSum::Add);
  BOOST_TEST(out.equal(x));
  out.backward(upstream);
  const at::Tensor x64 = x.detach().to(at::kDouble).requires_grad_(true);
  const at::Tensor want = plain(x64, t.to(at::kDouble), kind).mul(counts.to(at::kDouble)).sum().mul(0.3);
  want.backward();
  // A sum of a few dozen fp32 terms near 1, each rounded: 48 x 2^-24 x 2 is 6e-6.
  const double tolerance = 6e-6;
  BOOST_TEST(std::abs(sum.item<double>() - want.item<double>()) <= tolerance * want.item<double>());
  const auto diff = compare(x.grad(), x64.grad().add(upstream.to(at::kDouble)), tolerance);
  BOOST_TEST(diff.ok(), diff);
  // Rows that pass again are not summed again; nobody sums where another rank does.
  with_state_loss(x, target, StateSum::Skip);
  StateTarget of_another = target;
  of_another.sum.reset();
  with_state_loss(x, of_another, StateSum::Add);
  BOOST_TEST(std::abs(sum.item<double>() - want.item<double>()) <= tolerance * want.item<double>());
}

BOOST_AUTO_TEST_CASE(a_row_of_zeros_has_a_finite_term_and_nan_is_seen) {
  const at::Tensor t = at::ones({2, kWidth}, kFp32), sum = at::zeros({1}, kFp32);
  at::Tensor x = at::zeros({2, kWidth}, kFp32).requires_grad_(true);
  const StateTarget target{.layer = 1,
                           .kind = StateLossKind::Cosine,
                           .target_nD = t,
                           .counts_n = at::ones({2}, kFp32),
                           .sum = sum};
  with_state_loss(x, target, StateSum::Add).backward(at::zeros({2, kWidth}, kFp32));
  BOOST_TEST(sum.item<float>() == 2.0F);
  BOOST_TEST(x.grad().isfinite().all().item<bool>());
  with_state_loss(x.detach().add(std::nan("")), target, StateSum::Add);
  BOOST_TEST(std::isnan(sum.item<float>()));
}
