// RMSNorm per head and rope in one, against the fp64 references after each other. Widths: those of the kernel
// in fp32 and bf16 (a head takes 4 to 32 lanes), and others, which are composed of two operations. Rows
// straddle a block's (8 to 64) and the backward's ring.
#include "kernels/reference/head_norm_rope.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "kernels/head_norm_rope_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

constexpr double kEps = 1e-6;
constexpr int64_t kPositions = 4;  // few, so that angles in fp32 are good: rope_test has the others
constexpr double kAngleError = 0x1p-24 * kPositions * 8;  // half an ulp of the largest, times |x|

struct Case {
  int64_t tokens, heads, kv_heads, width;
};

HeadNormRopeInput random_input(const Case& c, at::ScalarType dtype) {
  const at::Tensor inv_freq = rope_inverse_frequencies({.head_dim = c.width});
  return {random_tensor({c.tokens, c.heads, c.width}, dtype, 141),
          random_tensor({c.tokens, c.kv_heads, c.width}, dtype, 142),
          random_tensor({c.width}, dtype, 143),
          random_tensor({c.width}, dtype, 144),
          rope_table(inv_freq, kPositions, device_under_test()),
          random_ids(c.tokens, kPositions, c.tokens % 2 ? at::kInt : at::kLong, 145)};
}

// One of q and k, against the references.
template <class T>
struct Oracle {
  reference::RmsNorm<double> want;
  reference::RmsNorm<T> plain;
  reference::RmsNormGradients<double> want_gradient;
  reference::RmsNormGradients<T> plain_gradient;
  double scale;  // the largest factor between an angle's error and a gradient's

  Oracle(const at::Tensor& x, const at::Tensor& w, const at::Tensor& dy, const HeadNormRopeInput& in) {
    const auto freq = values<double>(rope_inverse_frequencies({.head_dim = x.size(2)}));
    const auto where = values<int64_t>(in.positions_N);
    want = reference::head_norm_rope_forward(values<double>(x), values<double>(w), kEps, where, freq);
    plain = reference::head_norm_rope_forward(values<T>(x), values<T>(w), kEps, where, freq);
    want_gradient = reference::head_norm_rope_backward(values<double>(dy), values<double>(x),
                                                       values<double>(w), kEps, where, freq);
    plain_gradient =
        reference::head_norm_rope_backward(values<T>(dy), values<T>(x), values<T>(w), kEps, where, freq);
    double rstd = 1;
    for (const double r : want.rstd) rstd = std::fmax(rstd, r);
    scale = rstd * w.to(at::kFloat).abs().max().item<double>();
  }

  void check_forward(const at::Tensor& y, const at::Tensor& rstd) const {
    check_close("y", y, plain.y, want.y, kAngleError * scale);
    check_close("rstd", rstd, std::vector<float>(plain.rstd.begin(), plain.rstd.end()), want.rstd);
  }
  void check_backward(const at::Tensor& dx, const at::Tensor& dw, const at::Tensor& dy) const {
    // As in rms_norm_test: four fp32 roundings of terms that may nearly cancel.
    const double cancellation = 4 * 0x1p-24 * scale * 2 * dy.to(at::kFloat).abs().max().item<double>();
    check_close("dx", dx, plain_gradient.dx, want_gradient.dx, kAngleError * scale + cancellation);
    const double rows = static_cast<double>(want.rstd.size());
    check_close("dw", dw, std::vector<float>(plain_gradient.dw.begin(), plain_gradient.dw.end()),
                want_gradient.dw, kAngleError * rows);
  }
};

void check(const Case& c) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const HeadNormRopeInput in = random_input(c, dtype);
    const at::Tensor dq = random_tensor(in.q_NHW.sizes(), dtype, 146),
                     dk = random_tensor(in.k_NKW.sizes(), dtype, 147);
    const Oracle<T> q(in.q_NHW, in.q_weight_W, dq, in), k(in.k_NKW, in.k_weight_W, dk, in);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor q_out = at::empty_like(in.q_NHW), k_out = at::empty_like(in.k_NKW);
      const HeadNormRopeRstd rstd = head_norm_rope_forward_op(in, kEps, q_out, k_out, path);
      q.check_forward(q_out, rstd.q);
      k.check_forward(k_out, rstd.k);
      at::Tensor dwq = at::zeros({c.width}, rstd.q.options()), dwk = dwq.clone();
      at::Tensor dq_out = at::empty_like(dq), dk_out = at::empty_like(dk);
      head_norm_rope_backward_op(dq, dk, in, rstd, dwq, dwk, dq_out, dk_out, path);
      q.check_backward(dq_out, dwq, dq);
      k.check_backward(dk_out, dwk, dk);
    }
  });
}

BOOST_DATA_TEST_CASE(both_directions_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 2, 9, 33}) * bdata::make({6, 32, 64, 80, 128, 256, 512}) *
                         bdata::make({0, 1, 2}),
                     tokens, width, shape) {
  constexpr Case kShapes[] = {{0, 1, 1, 0}, {0, 4, 2, 0}, {0, 9, 3, 0}};
  check({tokens, kShapes[shape].heads, kShapes[shape].kv_heads, width});
}

BOOST_AUTO_TEST_CASE(many_rows) {
  check({4000, 14, 2, 128});
}

BOOST_DATA_TEST_CASE(views_and_in_place_give_the_same_bits, bdata::make({64, 80, 128}), width) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const HeadNormRopeInput dense = random_input({11, 6, 2, width}, dtype);
    at::Tensor q = at::empty_like(dense.q_NHW), k = at::empty_like(dense.k_NKW);
    const HeadNormRopeRstd rstd = head_norm_rope_forward_op(dense, kEps, q, k);
    // Sections of a fused projection, written in place.
    const at::Tensor qkv = random_tensor({11, 10, width}, dtype, 148);
    HeadNormRopeInput views = dense;
    views.q_NHW = qkv.narrow(1, 0, 6);
    views.k_NKW = qkv.narrow(1, 6, 2);
    views.q_NHW.copy_(dense.q_NHW);
    views.k_NKW.copy_(dense.k_NKW);
    const at::Tensor v_before = qkv.narrow(1, 8, 2).clone();
    at::Tensor q_view = views.q_NHW, k_view = views.k_NKW;
    head_norm_rope_forward_op(views, kEps, q_view, k_view);
    BOOST_TEST((bit_equal(q_view, q) && bit_equal(k_view, k)));
    BOOST_TEST(bit_equal(qkv.narrow(1, 8, 2), v_before));

    const at::Tensor dq = random_tensor(q.sizes(), dtype, 149), dk = random_tensor(k.sizes(), dtype, 150);
    at::Tensor dwq = at::zeros({width}, rstd.q.options()), dwk = dwq.clone(), dwq_view = dwq.clone(), none;
    at::Tensor dq_out = at::empty_like(dq), dk_out = at::empty_like(dk);
    head_norm_rope_backward_op(dq, dk, dense, rstd, dwq, dwk, dq_out, dk_out);
    at::Tensor dq_view = qkv.narrow(1, 0, 6), dk_view = qkv.narrow(1, 6, 2);
    dq_view.copy_(dq);
    dk_view.copy_(dk);
    head_norm_rope_backward_op(dq_view, dk_view, dense, rstd, dwq_view, none, dq_view, dk_view);
    BOOST_TEST((bit_equal(dq_view, dq_out) && bit_equal(dk_view, dk_out) && bit_equal(dwq_view, dwq)));
  }
}

// The sums are fp32's; what is stored in bf16 is rounded once.
BOOST_DATA_TEST_CASE(weight_gradients_add_to_bf16_with_one_rounding, bdata::make({64, 80, 128}), width) {
  const HeadNormRopeInput in = random_input({33, 6, 2, width}, at::kBFloat16);
  at::Tensor q = at::empty_like(in.q_NHW), k = at::empty_like(in.k_NKW);
  const HeadNormRopeRstd rstd = head_norm_rope_forward_op(in, kEps, q, k);
  const at::Tensor dq = random_tensor(q.sizes(), at::kBFloat16, 154),
                   dk = random_tensor(k.sizes(), at::kBFloat16, 155);
  const at::Tensor before = random_tensor({width}, at::kBFloat16, 156);
  at::Tensor wide_q = before.to(at::kFloat), wide_k = wide_q.clone(), narrow_q = before.clone(),
             narrow_k = before.clone();
  at::Tensor dq_out = at::empty_like(dq), dk_out = at::empty_like(dk);
  head_norm_rope_backward_op(dq, dk, in, rstd, wide_q, wide_k, dq_out, dk_out);
  head_norm_rope_backward_op(dq, dk, in, rstd, narrow_q, narrow_k, dq_out, dk_out);
  BOOST_TEST(bit_equal(narrow_q, wide_q.to(at::kBFloat16)));
  BOOST_TEST(bit_equal(narrow_k, wide_k.to(at::kBFloat16)));
}

BOOST_AUTO_TEST_CASE(reference_backward_is_the_derivative_of_reference_forward) {
  const std::vector<double> x = random_values(2 * 3 * 4, 151), w = random_values(4, 152),
                            dy = random_values(2 * 3 * 4, 153), freq = {1.0, 0.01};
  const std::vector<int64_t> positions = {3, 9};
  const auto gradients = reference::head_norm_rope_backward(dy, x, w, kEps, positions, freq);
  const auto loss = [&](const std::vector<double>& x_at, const std::vector<double>& w_at) {
    return weighted_sum(dy, reference::head_norm_rope_forward(x_at, w_at, kEps, positions, freq).y);
  };
  check_gradient(
      "dx", [&](const auto& v) { return loss(v, w); }, x, gradients.dx);
  check_gradient(
      "dw", [&](const auto& v) { return loss(x, v); }, w, gradients.dw);
}

BOOST_AUTO_TEST_CASE(wrong_arguments_are_refused) {
  HeadNormRopeInput in = random_input({2, 2, 1, 64}, at::kFloat);
  at::Tensor q = at::empty_like(in.q_NHW), k = at::empty_like(in.k_NKW);
  BOOST_CHECK_THROW(head_norm_rope_forward_op(in, -1.0, q, k), Error);
  BOOST_CHECK_THROW(head_norm_rope_forward_op(in, kEps, k, q), Error);
  in.k_weight_W = in.k_weight_W.to(at::kBFloat16);
  BOOST_CHECK_THROW(head_norm_rope_forward_op(in, kEps, q, k), Error);
}

}  // namespace
}  // namespace hearth
