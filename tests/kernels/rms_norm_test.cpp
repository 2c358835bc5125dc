// RMSNorm against its fp64 reference. Rows straddle the rows of a block (8) and of a gradient tile; columns
// straddle the 16-byte vector (8), one warp-wide load (256), the register-cached width and the unaligned
// scalar path.
#include "kernels/reference/rms_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "kernels/rms_norm_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;
constexpr double kEps = 1e-6;

void check_forward(int64_t rows, int64_t cols) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 17), w = random_tensor({cols}, dtype, 18);
    const auto want = reference::rms_norm_forward(values<double>(x), values<double>(w), kEps);
    const auto plain = reference::rms_norm_forward(values<T>(x), values<T>(w), kEps);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const auto got = rms_norm_forward_op(x, w, kEps, path);
      check_close("y", got.y, plain.y, want.y);
      check_close("rstd", got.rstd, std::vector<float>(plain.rstd.begin(), plain.rstd.end()), want.rstd);
    }
  });
}

void check_backward(int64_t rows, int64_t cols) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 17), w = random_tensor({cols}, dtype, 18);
    const at::Tensor dy = random_tensor({rows, cols}, dtype, 19);
    const at::Tensor before = random_tensor({cols}, at::kFloat, 20);
    auto want = reference::rms_norm_backward(values<double>(dy), values<double>(x), values<double>(w), kEps);
    auto plain = reference::rms_norm_backward(values<T>(dy), values<T>(x), values<T>(w), kEps);
    const auto start = values<float>(before);
    for (size_t c = 0; c < start.size(); ++c) want.dw[c] += start[c], plain.dw[c] += start[c];
    const at::Tensor rstd = rms_norm_forward_op(x, w, kEps).rstd;
    // dx = rstd (dy w - ...): in narrow rows the difference nearly vanishes, and four fp32 roundings of its
    // terms remain.
    const double cancellation =
        4 * 0x1p-24 * rstd.max().item<double>() * dy.to(at::kFloat).mul(w).abs().max().item<double>();
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor dw = before.clone();
      const at::Tensor dx = rms_norm_backward_op(dy, x, w, rstd, dw, {}, path);
      check_close("dx", dx, plain.dx, want.dx, cancellation);
      check_close("dw", dw, std::vector<float>(plain.dw.begin(), plain.dw.end()), want.dw);
    }
  });
}

BOOST_DATA_TEST_CASE(forward_is_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 7, 8, 9, 33}) *
                         bdata::make({1, 7, 8, 64, 128, 248, 256, 257, 264, 1001}),
                     rows, cols) {
  check_forward(rows, cols);
}

BOOST_DATA_TEST_CASE(backward_is_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 8, 9, 70}) * bdata::make({1, 7, 8, 64, 128, 256, 257, 264, 1001}), rows,
                     cols) {
  check_backward(rows, cols);
}

// One past each tile's width, in bf16 (multiples of 256 elements) and fp32 (half of that); 8200 leaves the
// registers.
BOOST_DATA_TEST_CASE(every_tile_width_and_the_one_after_it,
                     bdata::make({388, 512, 520, 768, 776, 1024, 1032, 2048, 2056, 4096, 4104, 8192, 8200}),
                     cols) {
  check_forward(5, cols);
  check_backward(5, cols);
}

// The sum over the rows is fp32's; what is stored is rounded once, to half an ulp, 2^-8 of the largest at
// most.
BOOST_DATA_TEST_CASE(the_weight_gradient_adds_to_bf16_with_one_rounding,
                     bdata::make({1, 9, 70}) * bdata::make({1, 64, 257, 1032, 8200}), rows, cols) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 41), w = random_tensor({cols}, dtype, 42);
    const at::Tensor dy = random_tensor({rows, cols}, dtype, 43);
    const at::Tensor before = random_tensor({cols}, at::kBFloat16, 44);
    auto dw = reference::rms_norm_backward(values<double>(dy), values<double>(x), values<double>(w), kEps).dw;
    const auto start = values<double>(before);
    for (size_t c = 0; c < start.size(); ++c) dw[c] += start[c];
    const at::Tensor want = tensor_of(dw, {cols}), rstd = rms_norm_forward_op(x, w, kEps).rstd;
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      at::Tensor got = before.clone();
      rms_norm_backward_op(dy, x, w, rstd, got, {}, path);
      // 2^-20: fp32 sums of up to 70 rows, well above their error and far below bf16's.
      const Diff diff = compare(got, want, (0x1p-8 + 0x1p-20) * want.abs().max().item<double>());
      BOOST_TEST(diff.ok(), diff);
    }
  }
}

// More rows than the blocks of the backward take at once, so that their rings of rows go round several times:
// groups of 8 and of 64 lanes, of 256, and of more than half a block.
BOOST_AUTO_TEST_CASE(many_rows) {
  check_backward(60001, 64);
  check_backward(9001, 512);
  check_backward(2001, 2048);
  check_backward(1001, 4104);
}

const auto kWidths = bdata::make({1, 7, 8, 64, 128, 256, 257, 264, 520, 776, 2048, 4096, 4104, 8192, 8200});

BOOST_DATA_TEST_CASE(residual_forward_has_the_bits_of_an_addition_and_a_norm, bdata::make({1, 9}) * kWidths,
                     rows, cols) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 50),
                     residual = random_tensor({rows, cols + 8}, dtype, 51).narrow(1, 0, cols),
                     w = random_tensor({cols}, dtype, 52);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const auto got = rms_norm_residual_forward_op(x, residual, w, kEps, path);
      const auto want = rms_norm_forward_op(x.add(residual), w, kEps, path);
      BOOST_TEST(bit_equal(got.sum, x.add(residual)));
      BOOST_TEST((bit_equal(got.y, want.y) && bit_equal(got.rstd, want.rstd)));
    }
  }
}

BOOST_DATA_TEST_CASE(backward_with_recompute_has_the_bits_of_both, bdata::make({1, 9}) * kWidths, rows,
                     cols) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({rows, cols}, dtype, 53), w = random_tensor({cols}, dtype, 54),
                     dy = random_tensor({rows, cols}, dtype, 55),
                     extra = random_tensor({rows, cols}, dtype, 56);
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const auto forward = rms_norm_forward_op(x, w, kEps, path);
      at::Tensor dw = at::zeros({cols}, w.options().dtype(at::kFloat)), dw_want = dw.clone();
      const at::Tensor dx = rms_norm_backward_op(dy, x, w, forward.rstd, dw_want, extra, path);
      const auto got = rms_norm_backward_recompute_op(dy, x, w, forward.rstd, dw, extra, path);
      BOOST_TEST((bit_equal(got.dx, dx) && bit_equal(dw, dw_want)));
      BOOST_TEST(bit_equal(got.y, forward.y));
    }
  }
}

// Rings of three tensors that go round: whole rows of 512 threads, which have fewer blocks, and narrower
// ones.
BOOST_DATA_TEST_CASE(many_rows_with_a_residual, bdata::make({512, 2048, 4104}), cols) {
  constexpr int64_t kRows = 2001;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({kRows, cols}, dtype, 61),
                     dy = random_tensor({kRows, cols}, dtype, 62),
                     extra = random_tensor({kRows, cols}, dtype, 63), w = random_tensor({cols}, dtype, 64);
    const at::Tensor rstd = rms_norm_forward_op(x, w, kEps).rstd;
    at::Tensor dw = at::zeros({cols}, w.options().dtype(at::kFloat)), dw_want = dw.clone();
    const auto got = rms_norm_backward_recompute_op(dy, x, w, rstd, dw, extra);
    const auto want = rms_norm_backward_recompute_op(dy, x, w, rstd, dw_want, extra, KernelPath::Plain);
    const double ulp = dtype == at::kFloat ? 0x1p-21 : 0x1p-8;  // stored once; a row's sum in another order
    for (const auto& [a, b] : {std::pair(got.dx, want.dx), std::pair(got.y, want.y)}) {
      const Diff diff = compare(a, b, ulp * compare(b, b, 0).largest_want);
      BOOST_TEST(diff.ok(), diff);
    }
    // Sums of kRows terms, whose roundings are random: the root of them, 16 times for the largest of all.
    const double terms = dy.to(at::kFloat).mul(x).abs().mul(rstd.unsqueeze(1)).sum(0).max().item<double>();
    const Diff diff = compare(dw, dw_want, 16 * std::sqrt(double{kRows}) * 0x1p-24 * terms);
    BOOST_TEST(diff.ok(), diff);
  }
}

// Heads as narrow as a warp's share, and wider ones, which take the slow path.
BOOST_DATA_TEST_CASE(every_input_may_have_strides, bdata::make({64, 128, 256, 264, 520}), width) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const auto heads = [&](uint64_t seed) {
      return random_tensor({7, 5 * width}, dtype, seed).narrow(1, width, 3 * width).view({7, 3, width});
    };
    const at::Tensor x = heads(57), dy = heads(58), extra = heads(59), w = random_tensor({width}, dtype, 60);
    const at::Tensor rstd = rms_norm_forward_op(x, w, kEps).rstd;
    at::Tensor dw = at::zeros({width}, w.options().dtype(at::kFloat)), dw_want = dw.clone();
    const auto got = rms_norm_backward_recompute_op(dy, x, w, rstd, dw, extra);
    const auto want = rms_norm_backward_recompute_op(dy, x, w, rstd, dw_want, extra, KernelPath::Plain);
    const double ulp = dtype == at::kFloat ? 0x1p-22 : 0x1p-8;  // both round once; sums differ in order
    for (const auto& [a, b] : {std::pair(got.dx, want.dx), std::pair(got.y, want.y)}) {
      const Diff diff = compare(a, b, ulp * compare(b, b, 0).largest_want);
      BOOST_TEST(diff.ok(), diff);
    }
    const Diff diff = compare(dw, dw_want, 21 * 0x1p-22 * compare(dw_want, dw_want, 0).largest_want);
    BOOST_TEST(diff.ok(), diff);
  }
}

BOOST_AUTO_TEST_CASE(heads_of_a_fused_qkv_view_equal_their_contiguous_copy) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = random_tensor({5, 9 * 64}, dtype, 21);
    const at::Tensor view = qkv.narrow(1, 2 * 64, 3 * 64).view({5, 3, 64}), copy = view.contiguous();
    const at::Tensor w = random_tensor({64}, dtype, 22), dy = random_tensor({5, 3, 64}, dtype, 23);
    const auto a = rms_norm_forward_op(view, w, kEps), b = rms_norm_forward_op(copy.view({15, 64}), w, kEps);
    BOOST_TEST(bit_equal(a.y.view({15, 64}), b.y));
    at::Tensor dw_a = at::zeros({64}, w.options().dtype(at::kFloat)), dw_b = dw_a.clone();
    const at::Tensor dx_a = rms_norm_backward_op(dy, view, w, a.rstd, dw_a);
    const at::Tensor dx_b = rms_norm_backward_op(dy.view({15, 64}), copy.view({15, 64}), w, b.rstd, dw_b);
    BOOST_TEST(bit_equal(dx_a.view({15, 64}), dx_b));
    BOOST_TEST(bit_equal(dw_a, dw_b));
  }
}

BOOST_AUTO_TEST_CASE(residual_gradient_is_added_before_the_only_rounding) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({9, 264}, dtype, 24), w = random_tensor({264}, dtype, 25);
    const at::Tensor dy = random_tensor({9, 264}, dtype, 26), residual = random_tensor({9, 264}, dtype, 27);
    const at::Tensor rstd = rms_norm_forward_op(x, w, kEps).rstd;
    at::Tensor none;
    const at::Tensor got = rms_norm_backward_op(dy, x, w, rstd, none, residual);
    const at::Tensor want = rms_norm_backward_op(dy, x, w, rstd, none, residual, KernelPath::Plain);
    const double ulp = dtype == at::kFloat ? 0x1p-22 : 0x1p-8;  // both round once; sums differ in order
    const Diff diff = compare(got, want, ulp * compare(want, want, 0).largest_want);
    BOOST_TEST(diff.ok(), diff);
  }
}

BOOST_AUTO_TEST_CASE(repeats_and_thread_counts_give_the_same_bits) {
  const at::Tensor x = random_tensor({300, 520}, at::kFloat, 28), w = random_tensor({520}, at::kFloat, 29);
  const at::Tensor dy = random_tensor({300, 520}, at::kFloat, 30);
  std::vector<at::Tensor> dx, dw;
  const int threads = at::get_num_threads();
  for (const int count : {1, 2, 2}) {
    at::set_num_threads(count);
    const at::Tensor rstd = rms_norm_forward_op(x, w, kEps).rstd;
    dw.push_back(at::zeros({520}, w.options()));
    dx.push_back(rms_norm_backward_op(dy, x, w, rstd, dw.back()));
  }
  at::set_num_threads(threads);
  BOOST_TEST((bit_equal(dx[0], dx[1]) && bit_equal(dx[1], dx[2])));
  BOOST_TEST((bit_equal(dw[0], dw[1]) && bit_equal(dw[1], dw[2])));
}

BOOST_AUTO_TEST_CASE(reference_backward_is_the_derivative_of_reference_forward) {
  const std::vector<double> x = random_values(3 * 5, 31), w = random_values(5, 32),
                            dy = random_values(3 * 5, 33);
  const auto gradients = reference::rms_norm_backward(dy, x, w, kEps);
  check_gradient(
      "dx", [&](const auto& v) { return weighted_sum(dy, reference::rms_norm_forward(v, w, kEps).y); }, x,
      gradients.dx);
  check_gradient(
      "dw", [&](const auto& v) { return weighted_sum(dy, reference::rms_norm_forward(x, v, kEps).y); }, w,
      gradients.dw);
}

BOOST_AUTO_TEST_CASE(wrong_shapes_and_types_are_refused) {
  const at::Tensor x = random_tensor({4, 8}, at::kFloat, 34), w = random_tensor({8}, at::kFloat, 35);
  BOOST_CHECK_THROW(rms_norm_forward_op(x, random_tensor({7}, at::kFloat, 36), kEps), Error);
  BOOST_CHECK_THROW(rms_norm_forward_op(x, w.to(at::kBFloat16), kEps), Error);
  BOOST_CHECK_THROW(rms_norm_forward_op(x.to(at::kDouble), w.to(at::kDouble), kEps), Error);
  BOOST_CHECK_THROW(rms_norm_forward_op(x.t(), random_tensor({4}, at::kFloat, 37), kEps), Error);
  BOOST_CHECK_THROW(rms_norm_forward_op(x, w, -1.0), Error);
  BOOST_CHECK_THROW(rms_norm_residual_forward_op(x, x.narrow(0, 0, 3), w, kEps), Error);
  BOOST_CHECK_THROW(rms_norm_residual_forward_op(x, x.to(at::kBFloat16), w, kEps), Error);
}

}  // namespace
}  // namespace hearth
