// The linear layer and its gradients against fp64 sums, at sizes that no tile divides. The weight gradient
// must add to what is there, and TF32 would miss the fp32 tolerance by a factor of hundreds.
#include "kernels/reference/gemm.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "kernels/gemm_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

BOOST_DATA_TEST_CASE(forward_and_gradients_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 5, 64, 129}) * bdata::make({1, 8, 72, 200}) *
                         bdata::make({1, 8, 65, 136}),
                     rows, inputs, outputs) {
  const reference::LinearShape shape{static_cast<size_t>(rows), static_cast<size_t>(inputs),
                                     static_cast<size_t>(outputs)};
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor x = random_tensor({rows, inputs}, dtype, 121),
                     w = random_tensor({outputs, inputs}, dtype, 122);
    const at::Tensor bias = random_tensor({outputs}, dtype, 123),
                     dy = random_tensor({rows, outputs}, dtype, 124);
    const auto x64 = values<double>(x), w64 = values<double>(w), b64 = values<double>(bias),
               dy64 = values<double>(dy);
    const auto x_t = values<T>(x), w_t = values<T>(w), b_t = values<T>(bias), dy_t = values<T>(dy);
    std::vector<double> dw(shape.m * shape.k, 1.0), db(shape.m, 1.0);
    std::vector<float> dw_plain(shape.m * shape.k, 1.0f), db_plain(shape.m, 1.0f);
    reference::linear_backward_weight(dy64, x64, shape, dw, db);
    reference::linear_backward_weight(dy_t, x_t, shape, dw_plain, db_plain);
    const auto options = x.options().dtype(at::kFloat);
    // Partial sums of K products of standard normals stay near sqrt(K), and K roundings of them add up like a
    // random walk, whatever the order: K 2^-24 in all. TF32 would lose 2^-11 sqrt(K), hundreds of times more.
    const double rounding = 0x1p-24 * std::max({rows, inputs, outputs});
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      check_close("y", linear_forward_op(x, w, {}, path), reference::linear_forward(x_t, w_t, {}, shape),
                  reference::linear_forward(x64, w64, {}, shape), rounding);
      check_close("y with bias", linear_forward_op(x, w, bias, path),
                  reference::linear_forward(x_t, w_t, b_t, shape),
                  reference::linear_forward(x64, w64, b64, shape), rounding);
      check_close("dx", linear_backward_input_op(dy, w, path),
                  reference::linear_backward_input(dy_t, w_t, shape),
                  reference::linear_backward_input(dy64, w64, shape), rounding);
      at::Tensor dw_got = at::zeros({outputs, inputs}, options).add(1.0),
                 db_got = at::zeros({outputs}, options).add(1.0);
      linear_backward_weight_op(dy, x, dw_got, &db_got, GradientWrite::Add, path);
      check_close("dw", dw_got, dw_plain, dw, rounding);
      check_close("db", db_got, db_plain, db, rounding);
    }
  });
}

// A bf16 sum is what is there plus the fp32 sum of the call. Some of cuBLASLt's kernels round the latter
// first, so two roundings: each of half an ulp, 2^-8 of the largest at most. (Sums that met in bf16 would
// have rows.)
BOOST_DATA_TEST_CASE(weight_gradients_add_to_bf16_with_two_roundings_at_most,
                     bdata::make({1, 5, 129}) * bdata::make({1, 8, 72, 200}) * bdata::make({1, 8, 65, 136}),
                     rows, inputs, outputs) {
  const at::Tensor x = random_tensor({rows, inputs}, at::kBFloat16, 141),
                   dy = random_tensor({rows, outputs}, at::kBFloat16, 142);
  const at::Tensor dw_before = random_tensor({outputs, inputs}, at::kBFloat16, 143),
                   db_before = random_tensor({outputs}, at::kBFloat16, 144);
  const at::Tensor dy64 = dy.cpu().to(at::kDouble);
  const at::Tensor product = dy64.t().mm(x.cpu().to(at::kDouble)), sum = dy64.sum(0);
  const at::Tensor dw = product.add(dw_before.cpu()), db = sum.add(db_before.cpu());
  const auto tolerance = [&](const at::Tensor& first, const at::Tensor& want) {
    return 0x1p-8 * (first.abs().max().item<double>() + want.abs().max().item<double>()) +
           0x1p-24 * static_cast<double>(rows + 2);
  };
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    at::Tensor dw_got = dw_before.clone(), db_got = db_before.clone();
    linear_backward_weight_op(dy, x, dw_got, &db_got, GradientWrite::Add, path);
    const Diff dw_diff = compare(dw_got, dw, tolerance(product, dw)),
               db_diff = compare(db_got, db, tolerance(sum, db));
    BOOST_TEST(dw_diff.ok(), (path == KernelPath::Fused ? "fused dw: " : "plain dw: ") << dw_diff);
    BOOST_TEST(db_diff.ok(), (path == KernelPath::Fused ? "fused db: " : "plain db: ") << db_diff);
  }
}

// What was there is not read, NaN included; the values are those of adding to zeros. rows = 0: a sum of
// nothing.
BOOST_DATA_TEST_CASE(the_first_contribution_overwrites,
                     bdata::make({0, 1, 5, 129}) * bdata::make({8, 200}) * bdata::make({8, 65}), rows, inputs,
                     outputs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const at::ScalarType sum_dtype : {at::kFloat, dtype})
      for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
        const at::Tensor x = random_tensor({rows, inputs}, dtype, 145),
                         dy = random_tensor({rows, outputs}, dtype, 146);
        at::Tensor want = at::zeros({outputs, inputs}, x.options().dtype(sum_dtype));
        at::Tensor got = at::empty_like(want).fill_(std::nan("")), again = got.clone();
        linear_backward_weight_op(dy, x, want, nullptr, GradientWrite::Add, path);
        linear_backward_weight_op(dy, x, got, nullptr, GradientWrite::Overwrite, path);
        matmul_accumulate_op(dy, MatmulTranspose::Yes, x, MatmulTranspose::No, again,
                             GradientWrite::Overwrite, /*scale=*/1.0, path);
        // cuBLASLt may take another algorithm where it does not read: fp32 sums in another order, one
        // rounding.
        const double ulp = sum_dtype == at::kFloat ? 0x1p-24 * static_cast<double>(rows + 1) : 0x1p-7;
        const double tolerance = ulp * want.abs().max().item<double>();
        const Diff diff = compare(got, want, tolerance), of_parts = compare(again, want, tolerance);
        BOOST_TEST(diff.ok(), diff);
        BOOST_TEST(of_parts.ok(), of_parts);
      }
}

BOOST_DATA_TEST_CASE(parts_of_wider_matrices_multiply_and_add,
                     bdata::make({1, 5, 129}) * bdata::make({4, 16, 40}) * bdata::make({8, 65}), rows, inner,
                     outputs) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    // Every operand is a part of a matrix with 8 more columns on either side.
    const auto part = [&](int64_t m, int64_t n, uint64_t seed) {
      return random_tensor({m, n + 16}, dtype, seed).narrow(1, 8, n);
    };
    for (const bool a_t : {false, true})
      for (const bool b_t : {false, true})
        for (const at::ScalarType d_dtype : {dtype, at::kFloat}) {
          const at::Tensor a = a_t ? part(inner, rows, 131) : part(rows, inner, 131),
                           b = b_t ? part(outputs, inner, 132) : part(inner, outputs, 132);
          const at::Tensor wide = random_tensor({rows, outputs + 16}, at::kFloat, 133).to(d_dtype);
          const at::Tensor a64 = (a_t ? a.t() : a).cpu().to(at::kDouble),
                           b64 = (b_t ? b.t() : b).cpu().to(at::kDouble);
          const at::Tensor want =
              wide.narrow(1, 8, outputs).cpu().to(at::kDouble).add(a64.mm(b64), /*alpha=*/0.75);
          for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
            const at::Tensor got = wide.clone();
            matmul_accumulate_op(a, a_t ? MatmulTranspose::Yes : MatmulTranspose::No, b,
                                 b_t ? MatmulTranspose::Yes : MatmulTranspose::No, got.narrow(1, 8, outputs),
                                 GradientWrite::Add, /*scale=*/0.75, path);
            // Sums in fp32, then one rounding to the result's type (two on the plain bf16 path).
            const double ulp = d_dtype == at::kFloat ? 0x1p-24 * (inner + 2) : 0x1p-7;
            const Diff diff = compare(got.narrow(1, 8, outputs), want, ulp * want.abs().max().item<double>());
            BOOST_TEST(diff.ok(), diff);
            BOOST_TEST(bit_equal(got.narrow(1, 0, 8), wide.narrow(1, 0, 8)));
            BOOST_TEST(bit_equal(got.narrow(1, outputs + 8, 8), wide.narrow(1, outputs + 8, 8)));
          }
        }
  });
}

// What is added inside the product, by itself and with a bias, is added before the one rounding; the fifth
// product of a shape is one that was timed with other algorithms where there are any.
BOOST_DATA_TEST_CASE(residuals_are_added_inside_the_product,
                     bdata::make({1, 5, 129}) * bdata::make({8, 200}) * bdata::make({8, 65}), rows, inputs,
                     outputs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain})
      for (int repeat = 0; repeat < 5; ++repeat) {
        const auto seed = static_cast<uint64_t>(200 + 10 * repeat);
        const at::Tensor x = random_tensor({rows, inputs}, dtype, seed),
                         w = random_tensor({outputs, inputs}, dtype, seed + 1),
                         bias = random_tensor({outputs}, dtype, seed + 2),
                         dy = random_tensor({rows, outputs}, dtype, seed + 3),
                         residual = random_tensor({rows, outputs}, dtype, seed + 4),
                         before = random_tensor({rows, inputs}, dtype, seed + 5);
        const auto wide = [](const at::Tensor& tensor) { return tensor.cpu().to(at::kDouble); };
        // As above; the bf16 path of ATen rounds the sum with the residual and that with the bias.
        const double ulp = dtype == at::kFloat ? 0x1p-24 * static_cast<double>(inputs + outputs + 2) : 0x1p-7;
        const auto check = [&](const at::Tensor& got, const at::Tensor& want) {
          const Diff diff = compare(got, want, ulp * want.abs().max().item<double>());
          BOOST_TEST(diff.ok(), diff);
        };
        const at::Tensor product = wide(x).mm(wide(w).t()).add(wide(residual));
        check(linear_forward_op(x, w, {}, path, residual), product);
        check(linear_forward_op(x, w, bias, path, residual), product.add(wide(bias)));
        // Into some rows of a larger tensor; the others stay.
        const at::Tensor all = at::empty({rows + 2, outputs}, x.options()).fill_(std::nan(""));
        const at::Tensor some = all.narrow(0, 1, rows);
        BOOST_TEST(linear_forward_op(x, w, bias, path, residual, some).is_same(some));
        check(some, product.add(wide(bias)));
        linear_forward_op(x, w, {}, path, {}, some);
        check(some, wide(x).mm(wide(w).t()));
        BOOST_TEST(all.isnan().sum().item<int64_t>() == 2 * outputs);
        const at::Tensor into = at::empty_like(before).fill_(std::nan("")), onto = before.clone();
        linear_backward_input_op(dy, w, path, into);
        linear_backward_input_op(dy, w, path, onto, GradientWrite::Add);
        check(into, wide(dy).mm(wide(w)));
        check(onto, wide(dy).mm(wide(w)).add(wide(before)));
      }
}

BOOST_AUTO_TEST_CASE(repeats_give_the_same_bits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = random_tensor({777, 264}, dtype, 125), dy = random_tensor({777, 136}, dtype, 126);
    at::Tensor first = at::zeros({136, 264}, x.options().dtype(at::kFloat)), second = first.clone();
    linear_backward_weight_op(dy, x, first);
    linear_backward_weight_op(dy, x, second);
    BOOST_TEST(bit_equal(first, second));
  }
}

BOOST_AUTO_TEST_CASE(wrong_shapes_are_refused) {
  const at::Tensor x = random_tensor({4, 8}, at::kFloat, 127), w = random_tensor({3, 8}, at::kFloat, 128);
  BOOST_CHECK_THROW(linear_forward_op(x, random_tensor({3, 7}, at::kFloat, 129)), Error);
  BOOST_CHECK_THROW(linear_forward_op(x, w, random_tensor({4}, at::kFloat, 130)), Error);
  BOOST_CHECK_THROW(linear_forward_op(x.to(at::kBFloat16), w), Error);
  const at::Tensor short_out = random_tensor({3, 3}, at::kFloat, 133);
  BOOST_CHECK_THROW(linear_forward_op(x, w, {}, KernelPath::Fused, {}, short_out), Error);
  at::Tensor accum = random_tensor({8, 3}, at::kFloat, 131);
  BOOST_CHECK_THROW(linear_backward_weight_op(random_tensor({4, 3}, at::kFloat, 132), x, accum), Error);
  at::Tensor narrow = random_tensor({3, 8}, at::kBFloat16, 133);  // of a product in fp32
  BOOST_CHECK_THROW(linear_backward_weight_op(random_tensor({4, 3}, at::kFloat, 132), x, narrow), Error);
}

}  // namespace
}  // namespace hearth
