// Rotary embedding against its fp64 reference and against transformers' formulas. Half widths straddle the
// 16-byte vector (8 bf16, 4 fp32); heads straddle grouped-query shapes (14 / 2, 9 / 3).
#include "kernels/reference/rope.h"

#include <cmath>

#include "kernels/rope_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

// Angles grow with the position, and fp32 angles lose relative precision with them: the oracle takes the
// table's own fp32 frequencies, and positions stay small enough that an fp32 angle is good to 2^-24 * 64.
constexpr int64_t kPositions = 64;

struct Heads {
  int64_t query, key;
};

std::vector<double> frequencies_of(const at::Tensor& inv_freq) {
  return values<double>(inv_freq);
}

BOOST_DATA_TEST_CASE(both_directions_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 5, 17}) * bdata::make({2, 6, 8, 16, 64, 80, 128}) *
                         bdata::make({0, 1, 2, 3}),
                     tokens, width, shape) {
  constexpr Heads kShapes[] = {
      {1, 1}, {14, 2}, {9, 3}, {4, 1}};  // the last: an odd number, and a thread takes two
  const Heads heads = kShapes[shape];
  const at::Tensor inv_freq = rope_inverse_frequencies({.head_dim = width});
  const RopeTable table = rope_table(inv_freq, kPositions, device_under_test());
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor q = random_tensor({tokens, heads.query, width}, dtype, 41);
    const at::Tensor k = random_tensor({tokens, heads.key, width}, dtype, 42);
    const at::Tensor positions = random_ids(tokens, kPositions, tokens == 5 ? at::kInt : at::kLong, 43);
    const auto where = values<int64_t>(positions);
    const auto freq = frequencies_of(inv_freq);
    for (const RopeDirection direction : {RopeDirection::Forward, RopeDirection::Backward}) {
      const double sign = direction == RopeDirection::Forward ? 1 : -1;
      for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
        const RopeResult got = rope_op(q, k, table, positions, direction, path);
        // fp32 angles: half an ulp of up to 64, times |x|, is more than plain fp32 arithmetic on exact angles
        // loses.
        const double angle_error = 0x1p-24 * kPositions * 8;
        const auto check = [&](const at::Tensor& x, const at::Tensor& out) {
          const auto want = reference::rope(values<double>(x), where, freq, sign);
          const double tol = tolerance(reference::rope(values<T>(x), where, freq, sign), want) + angle_error;
          const Diff diff = compare(out, tensor_of(want, out.sizes()), tol);
          BOOST_TEST(diff.ok(), diff);
        };
        check(q, got.q);
        check(k, got.k);
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(views_of_a_fused_projection_and_in_place_give_the_same_bits) {
  const RopeTable table =
      rope_table(rope_inverse_frequencies({.head_dim = 64}), kPositions, device_under_test());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = random_tensor({11, (6 + 2 + 2) * 64}, dtype, 44);
    const at::Tensor q = qkv.narrow(1, 0, 6 * 64).view({11, 6, 64}),
                     k = qkv.narrow(1, 6 * 64, 128).view({11, 2, 64});
    const at::Tensor positions = random_ids(11, kPositions, at::kLong, 45);
    const RopeResult want = rope_op(q.contiguous(), k.contiguous(), table, positions, RopeDirection::Forward);
    const RopeResult from_views = rope_op(q, k, table, positions, RopeDirection::Forward);
    BOOST_TEST((bit_equal(from_views.q, want.q) && bit_equal(from_views.k, want.k)));
    const at::Tensor value_before = qkv.narrow(1, 8 * 64, 128).clone();
    at::Tensor q_out = q, k_out = k;
    rope_out_op(q, k, table, positions, RopeDirection::Forward, q_out, k_out);
    BOOST_TEST((bit_equal(q, want.q) && bit_equal(k, want.k)));
    BOOST_TEST(bit_equal(qkv.narrow(1, 8 * 64, 128), value_before));
  }
}

BOOST_AUTO_TEST_CASE(reference_backward_is_the_derivative_of_reference_forward) {
  const std::vector<double> x = random_values(2 * 3 * 4, 46), dy = random_values(2 * 3 * 4, 47),
                            freq = {1.0, 0.01};
  const std::vector<int64_t> positions = {3, 9};
  check_gradient(
      "dx", [&](const auto& v) { return weighted_sum(dy, reference::rope(v, positions, freq, 1)); }, x,
      reference::rope(dy, positions, freq, -1));
}

BOOST_AUTO_TEST_CASE(inverse_frequencies_follow_the_published_rules) {
  const auto plain = values<double>(rope_inverse_frequencies({.head_dim = 128, .theta = 5e5}));
  const auto scaled = values<double>(rope_inverse_frequencies({.head_dim = 128,
                                                               .theta = 5e5,
                                                               .scaling = RopeScalingKind::Llama3,
                                                               .factor = 8,
                                                               .low_freq_factor = 1,
                                                               .high_freq_factor = 4,
                                                               .original_max_position_embeddings = 8192}));
  int kept = 0, slowed = 0, blended = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double exact = std::pow(5e5, -static_cast<double>(i) / 64.0), wavelength = 2 * M_PI / exact;
    BOOST_TEST(std::abs(plain[i] - exact) <= 4e-7 * exact);
    double want = exact;
    if (wavelength > 8192) {
      want = exact / 8, ++slowed;
    } else if (wavelength >= 8192 / 4.0) {
      const double blend = (8192 / wavelength - 1) / 3;
      want = (1 - blend) * exact / 8 + blend * exact, ++blended;
    } else {
      ++kept;
    }
    BOOST_TEST(std::abs(scaled[i] - want) <= 4e-6 * want,
               "pair " << i << ": " << scaled[i] << " want " << want);
  }
  BOOST_TEST((kept > 0 && slowed > 0 && blended > 0));
}

BOOST_AUTO_TEST_CASE(wrong_arguments_are_refused) {
  const RopeTable table = rope_table(rope_inverse_frequencies({.head_dim = 8}), 4, device_under_test());
  const at::Tensor q = random_tensor({2, 1, 8}, at::kFloat, 48), k = random_tensor({2, 1, 8}, at::kFloat, 49);
  const auto run = [&](const at::Tensor& positions) {
    return rope_op(q, k, table, positions, RopeDirection::Forward);
  };
  BOOST_CHECK_THROW(run(random_ids(3, 4, at::kLong, 50)), Error);
  BOOST_CHECK_THROW(rope_inverse_frequencies({.head_dim = 7}), Error);
  const at::Tensor outside = random_ids(2, 1, at::kLong, 51).add(4);
  if (device_under_test().is_cpu()) {
    BOOST_CHECK_THROW(run(outside), Error);
  } else {
    BOOST_TEST(run(outside).q.isnan().all().item<bool>());
  }
}

}  // namespace
}  // namespace hearth
