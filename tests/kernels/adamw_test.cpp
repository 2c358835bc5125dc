// AdamW and the sum of squares against their references. Sizes straddle the vector, one block and one
// reduction block.
#include "kernels/reference/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "kernels/adamw_op.h"
#include "kernels/adamw_scalars.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

constexpr reference::AdamWScalars kScalars{
    .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.75, .step = 1};

// `size` elements, of which [size / 3, size / 2) and the last one take no decay.
struct Problem {
  at::Tensor ranges;
  std::vector<double> decays;
};
Problem problem(int64_t size) {
  const int64_t bounds[] = {size / 3, size / 2, size - 1, size};
  at::Tensor ranges = at::empty({2, 2}, at::TensorOptions().dtype(at::kLong));
  std::copy(bounds, bounds + 4, ranges.data_ptr<int64_t>());
  Problem p{ranges.to(device_under_test()), std::vector<double>(static_cast<size_t>(size), 1.0)};
  for (int64_t i = 0; i < size; ++i)
    if ((i >= bounds[0] && i < bounds[1]) || i == size - 1) p.decays[static_cast<size_t>(i)] = 0.0;
  return p;
}

template <class T>
reference::AdamW<T> run_reference(int64_t size, int64_t steps, const std::vector<double>& decays) {
  reference::AdamW<T> state{values<T>(random_tensor({size}, at::kFloat, 81)),
                            std::vector<T>(static_cast<size_t>(size)),
                            std::vector<T>(static_cast<size_t>(size))};
  reference::AdamWScalars scalars = kScalars;
  for (scalars.step = 1; scalars.step <= steps; ++scalars.step)
    reference::adamw_step(
        state, values<T>(random_tensor({size}, at::kFloat, 90 + static_cast<uint64_t>(scalars.step))), decays,
        scalars);
  return state;
}

AdamWStep make_step(int64_t size, const at::Tensor& ranges) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_under_test());
  return {.master = random_tensor({size}, at::kFloat, 81),
          .grad = {},
          .exp_avg = at::zeros({size}, options),
          .exp_avg_sq = at::zeros({size}, options),
          .model_param = at::empty({size}, options.dtype(at::kBFloat16)),
          .no_decay_ranges_R2 = ranges,
          .lr = kScalars.lr,
          .beta1 = kScalars.beta1,
          .beta2 = kScalars.beta2,
          .eps = kScalars.eps,
          .weight_decay = kScalars.weight_decay,
          .step = 1,
          .grad_scale = kScalars.grad_scale,
          .grad_scale_tensor = {}};
}

AdamWStep run_op(int64_t size, int64_t steps, const at::Tensor& ranges, KernelPath path) {
  AdamWStep step = make_step(size, ranges);
  for (step.step = 1; step.step <= steps; ++step.step) {
    step.grad = random_tensor({size}, at::kFloat, 90 + static_cast<uint64_t>(step.step));
    adamw_step_op(step, path);
  }
  return step;
}

BOOST_DATA_TEST_CASE(three_steps_are_as_accurate_as_plain_arithmetic,
                     bdata::make({2, 3, 4, 5, 127, 1023, 1024, 1025, 20000}), size) {
  const Problem p = problem(size);
  const auto want = run_reference<double>(size, 3, p.decays);
  const auto plain = run_reference<float>(size, 3, p.decays);
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const AdamWStep got = run_op(size, 3, p.ranges, path);
    check_close("param", got.master, plain.param, want.param);
    check_close("exp_avg", got.exp_avg, plain.exp_avg, want.exp_avg);
    check_close("exp_avg_sq", got.exp_avg_sq, plain.exp_avg_sq, want.exp_avg_sq);
    BOOST_TEST(bit_equal(got.model_param, got.master.to(at::kBFloat16)));
  }
}

// The plain path is torch.optim.AdamW's own sequence of ATen calls, so on the CPU the two agree to the last
// bit or two.
BOOST_AUTO_TEST_CASE(agrees_with_the_torch_sequence_to_rounding) {
  const Problem p = problem(4099);
  const AdamWStep got = run_op(4099, 10, p.ranges, KernelPath::Fused);
  const AdamWStep want = run_op(4099, 10, p.ranges, KernelPath::Plain);
  const Diff diff = compare(got.master, want.master, 10 * 0x1p-24 * 4);  // 10 steps, |param| below 4
  BOOST_TEST(diff.ok(), diff);
}

BOOST_AUTO_TEST_CASE(a_scale_on_the_device_equals_one_from_the_host) {
  AdamWStep host = make_step(1025, {}), device = make_step(1025, {});
  host.grad = device.grad = random_tensor({1025}, at::kFloat, 101);
  host.grad_scale = 0.5;
  device.grad_scale = 1.0;
  device.grad_scale_tensor = at::zeros({1}, device.grad.options()).add(0.5);
  adamw_step_op(host);
  adamw_step_op(device);
  BOOST_TEST(bit_equal(host.master, device.master));
}

// A bf16 gradient is a value like any other: the step is that of the same gradient in fp32, to the bit.
BOOST_DATA_TEST_CASE(a_gradient_in_bf16_equals_its_fp32_value,
                     bdata::make({2, 3, 4, 5, 1023, 1024, 1025, 20000}), size) {
  const Problem p = problem(size);
  for (const bool states_too : {false, true})
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      AdamWStep narrow = make_step(size, p.ranges);
      narrow.grad = random_tensor({size}, at::kBFloat16, 109);
      if (states_too) {
        narrow.model_param = at::Tensor();
        for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
          narrow.*state = (narrow.*state).to(at::kBFloat16);
      }
      AdamWStep wide = narrow;
      wide.grad = narrow.grad.to(at::kFloat);
      for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
        wide.*state = (narrow.*state).clone();
      adamw_step_op(narrow, path);
      adamw_step_op(wide, path);
      for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
        BOOST_TEST(bit_equal(narrow.*state, wide.*state));
    }
}

BOOST_AUTO_TEST_CASE(a_buffer_at_any_offset_gives_the_same_values) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device_under_test());
  AdamWStep whole = make_step(1030, {});
  whole.grad = random_tensor({1030}, at::kFloat, 102);
  AdamWStep part = make_step(1030, {});
  part.grad = whole.grad.narrow(0, 1, 1027);  // 4 bytes past a 16-byte boundary
  part.master = part.master.narrow(0, 1, 1027);
  part.exp_avg = at::zeros({1027}, options);
  part.exp_avg_sq = at::zeros({1027}, options);
  part.model_param = part.model_param.narrow(0, 1, 1027);
  adamw_step_op(whole);
  adamw_step_op(part);
  BOOST_TEST(bit_equal(part.master, whole.master.narrow(0, 1, 1027)));
  BOOST_TEST(bit_equal(part.model_param, whole.model_param.narrow(0, 1, 1027)));
}

BOOST_DATA_TEST_CASE(sum_of_squares_is_exact_to_double_rounding,
                     bdata::make({0, 1, 3, 4, 8191, 8192, 8193, 32767, 32768, 32769, 100003, 1000000}),
                     size) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t offset : {0, 1}) {  // 1: from an address that no vector load takes
      const at::Tensor x = random_tensor({size + offset}, dtype, 103).narrow(0, offset, size);
      double want = 0;
      for (const double v : values<double>(x)) want += v * v;
      const at::Tensor got = sum_of_squares_op(x);
      BOOST_TEST((got.scalar_type() == at::kDouble && got.numel() == 1));
      BOOST_TEST(std::abs(got.item<double>() - want) <= 1e-12 * want);
      const int threads = at::get_num_threads();
      at::set_num_threads(1);
      BOOST_TEST(bit_equal(sum_of_squares_op(x), got));
      at::set_num_threads(threads);
    }
}

BOOST_AUTO_TEST_CASE(sum_of_squares_is_finite_exactly_when_every_element_is) {
  at::Tensor x = random_tensor({10000}, at::kFloat, 104);
  x.select(0, 9999).fill_(std::numeric_limits<float>::max());
  BOOST_TEST(std::isfinite(sum_of_squares_op(x).item<double>()));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    x.select(0, 9999).fill_(bad);
    BOOST_TEST(!std::isfinite(sum_of_squares_op(x).item<double>()));
  }
}

BOOST_DATA_TEST_CASE(states_in_bf16_are_rounded_to_a_neighbour_and_right_on_average,
                     bdata::make({1, 5, 1027, 40000}), size) {
  const auto bf16 = [](const at::Tensor& x) { return x.to(at::kBFloat16); };
  for (const bool master_too : {false, true}) {
    AdamWStep wide = make_step(size, {});
    wide.model_param = at::Tensor();
    wide.grad = random_tensor({size}, at::kFloat, 106);
    wide.exp_avg = bf16(random_tensor({size}, at::kFloat, 107)).to(at::kFloat);
    wide.exp_avg_sq = bf16(random_tensor({size}, at::kFloat, 108).square()).to(at::kFloat);
    wide.master = bf16(wide.master).to(at::kFloat);
    AdamWStep narrow = wide;
    narrow.rounding_seed = 7;
    narrow.exp_avg = bf16(wide.exp_avg), narrow.exp_avg_sq = bf16(wide.exp_avg_sq);
    narrow.master = master_too ? bf16(wide.master) : wide.master.clone();
    AdamWStep again = narrow;
    for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
      again.*state = (narrow.*state).clone();
    adamw_step_op(wide);
    adamw_step_op(narrow);
    adamw_step_op(again);
    for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq}) {
      BOOST_TEST(bit_equal(narrow.*state, again.*state));
      if ((narrow.*state).scalar_type() == at::kFloat) continue;
      const auto got = values<double>(narrow.*state), want = values<double>(wide.*state);
      double bias = 0, spread = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        // Neighbours are at most 2^-7 of the value apart.
        const double ulp = std::exp2(std::floor(std::log2(std::max(std::abs(want[i]), 1e-30))) - 7);
        BOOST_TEST(std::abs(got[i] - want[i]) <= ulp * 1.001);
        bias += (got[i] - want[i]) / ulp, spread += 0.25;
      }
      // A draw's variance is at most a quarter; five standard deviations of the sum.
      BOOST_TEST(std::abs(bias) <= 5 * std::sqrt(spread) + 0.01 * static_cast<double>(size));
    }
  }
}

// What a group of elements shares must not show: each stream of bits is uniform, and no two move together.
BOOST_AUTO_TEST_CASE(random_bits_of_a_group_are_uniform_and_apart) {
  constexpr int kStreams = 3 * kRoundingGroup, kGroups = 1 << 14;
  std::vector<double> values(static_cast<size_t>(kStreams * kGroups));  // mean 0, variance 1
  for (int g = 0; g < kGroups; ++g) {
    const uint32_t draw = rounding_draw(0x123456789abcdefull, static_cast<uint64_t>(g));
    for (int k = 0; k < kStreams; ++k) {
      const uint32_t bits = rounding_bits(draw, rounding_factor(k / 3, static_cast<AdamWState>(k % 3)));
      BOOST_TEST_REQUIRE(bits <= 0xffffu);
      values[static_cast<size_t>(k * kGroups + g)] = ((bits + 0.5) / 65536.0 - 0.5) * std::sqrt(12.0);
    }
  }
  // A mean of kGroups products of independent standardised draws: standard deviation at most 1 /
  // sqrt(kGroups). Of some 600 of them the largest is within 5 of those.
  const double allowed = 5 / std::sqrt(static_cast<double>(kGroups));
  const auto mean_product = [&](int j, int k) {
    double sum = 0;
    for (int g = 0; g < kGroups; ++g)
      sum += values[static_cast<size_t>(j * kGroups + g)] *
             (k < 0 ? 1.0 : values[static_cast<size_t>(k * kGroups + g)]);
    return sum / kGroups;
  };
  for (int j = 0; j < kStreams; ++j) {
    BOOST_TEST(std::abs(mean_product(j, -1)) <= allowed);
    for (int k = 0; k < j; ++k) BOOST_TEST(std::abs(mean_product(j, k)) <= allowed, j << " and " << k);
  }
}

// The fast kernel rounds without a look at NaNs unless there is one.
BOOST_DATA_TEST_CASE(what_is_not_finite_stays_so_in_bf16_states, bdata::make({1, 8, 1027}), size) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf(""), -std::nanf("")}) {
    AdamWStep step = make_step(size, {});
    step.model_param = at::Tensor();
    for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq})
      step.*state = (step.*state).to(at::kBFloat16);
    step.grad = random_tensor({size}, at::kBFloat16, 110);
    step.grad.select(0, size - 1).fill_(bad);
    adamw_step_op(step);
    for (auto state : {&AdamWStep::master, &AdamWStep::exp_avg, &AdamWStep::exp_avg_sq}) {
      const auto got = values<double>((step.*state).to(at::kFloat));
      // An infinite gradient makes infinite moments and their ratio NaN.
      for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(std::isfinite(got[i]) == (i + 1 < got.size()));
    }
  }
}

BOOST_AUTO_TEST_CASE(wrong_arguments_are_refused) {
  AdamWStep step = make_step(8, {});
  step.grad = random_tensor({7}, at::kFloat, 105);
  BOOST_CHECK_THROW(adamw_step_op(step), Error);
  step.grad = random_tensor({8}, at::kFloat, 105);
  step.step = 0;
  BOOST_CHECK_THROW(adamw_step_op(step), Error);
}

BOOST_AUTO_TEST_CASE(random_rounding_keeps_sign_and_what_is_not_finite) {
  for (const uint32_t random : {0u, 1u, 0x8000u, 0xffffu}) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      for (const uint32_t bits : {0x7f800000u, 0x7f800001u, 0x7fc00000u, 0x7fffffffu})
        BOOST_TEST((stochastic_bf16_bits(sign | bits, random) & 0x7f80u) == 0x7f80u);
      for (const uint32_t bits : {0u, 1u, 0x00800000u, 0x3f800000u, 0x3f80ffffu, 0x7f7f0000u}) {
        const uint32_t rounded = stochastic_bf16_bits(sign | bits, random), below = (sign | bits) >> 16;
        BOOST_TEST((rounded == below || rounded == below + 1));
        BOOST_TEST((rounded == below) == ((bits & 0xffffu) + random <= 0xffffu));
      }
    }
  }
}

}  // namespace
}  // namespace hearth
