// Cross entropy against its fp64 reference. Vocabularies straddle the vector width, one block's sweep and the
// size up to which a row stays in registers or shared memory; padded columns and a row stride that exceeds
// them are included.
#include "kernels/reference/cross_entropy.h"

#include "kernels/cross_entropy_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

constexpr double kScale = 0.125;

// Every third target is ignored, so that a tile holds both kinds.
at::Tensor targets_with_gaps(int64_t rows, int64_t vocab, at::ScalarType dtype) {
  at::Tensor targets = random_ids(rows, vocab, dtype, 72);
  for (int64_t r = 1; r < rows; r += 3) targets.select(0, r).fill_(kIgnoreIndex);
  return targets;
}

struct Shape {
  int64_t rows, vocab, padded, stride;
};

void check_shape(const Shape& s, at::ScalarType id_type) {
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor storage = random_tensor({s.rows, s.stride}, dtype, 71, 4.0);
    const at::Tensor logits = storage.narrow(1, 0, s.padded),
                     targets = targets_with_gaps(s.rows, s.vocab, id_type);
    const auto ids = values<int64_t>(targets);
    const auto columns = static_cast<size_t>(s.padded), valid = static_cast<size_t>(s.vocab);
    const auto want =
        reference::cross_entropy(values<double>(logits), ids, columns, valid, kScale, kIgnoreIndex);
    const auto plain = reference::cross_entropy(values<T>(logits), ids, columns, valid, kScale, kIgnoreIndex);
    const std::vector<float> plain_loss(plain.loss.begin(), plain.loss.end());
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      check_close("logprob", token_logprobs_op(logits, targets, s.vocab, kIgnoreIndex, path).neg(),
                  plain_loss, want.loss);
      const at::Tensor work = storage.clone();
      at::Tensor gradient = work.narrow(1, 0, s.padded);
      const at::Tensor loss =
          cross_entropy_forward_backward_op(gradient, targets, kScale, s.vocab, kIgnoreIndex, path);
      check_close("loss", loss, plain_loss, want.loss);
      // Where the model is sure, softmax - 1 cancels: what remains of four fp32 roundings of a number near 1.
      check_close("gradient", gradient, plain.gradient, want.gradient, 4 * 0x1p-24 * kScale);
      if (s.stride > s.padded)
        BOOST_TEST(bit_equal(work.narrow(1, s.padded, s.stride - s.padded),
                             storage.narrow(1, s.padded, s.stride - s.padded)));
    }
  });
}

BOOST_DATA_TEST_CASE(loss_and_gradient_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 2, 9}) * bdata::make({1, 2, 7, 8, 9, 255, 1000, 2048, 2049, 8200}), rows,
                     vocab) {
  check_shape({rows, vocab, vocab, vocab}, at::kLong);
}

BOOST_AUTO_TEST_CASE(large_and_padded_vocabularies) {
  check_shape({2, 16384, 16384, 16384}, at::kLong);
  check_shape({2, 16392, 16392, 16392}, at::kLong);
  check_shape({2, 32776, 32776, 32776}, at::kLong);
  check_shape({3, 49152, 49152, 49152}, at::kInt);
  check_shape({3, 50257, 50304, 50304}, at::kInt);
  check_shape({2, 128256, 128256, 128264}, at::kLong);
  check_shape({2, 151936, 152064, 152065}, at::kLong);  // odd stride: every second row is unaligned
  check_shape({1, 256000, 256000, 256000}, at::kLong);
}

BOOST_AUTO_TEST_CASE(far_apart_logits_neither_overflow_nor_vanish) {
  at::Tensor logits = random_tensor({1, 300}, at::kFloat, 73).mul(0.0).sub(1e4);
  logits.select(1, 7).fill_(1e4);
  const at::Tensor targets = random_ids(1, 1, at::kLong, 74).add(7);
  BOOST_TEST(values<double>(token_logprobs_op(logits, targets, 300))[0] == 0.0);
  BOOST_TEST(values<double>(token_logprobs_op(logits, targets.add(1), 300))[0] == -2e4);
}

BOOST_AUTO_TEST_CASE(a_nan_logit_reaches_the_loss) {
  at::Tensor logits = random_tensor({2, 300}, at::kFloat, 75);
  logits.select(0, 1).select(0, 100).fill_(std::nan(""));
  const auto loss = values<double>(token_logprobs_op(logits, random_ids(2, 300, at::kLong, 76), 300));
  BOOST_TEST(std::isfinite(loss[0]));
  BOOST_TEST(std::isnan(loss[1]));
}

BOOST_AUTO_TEST_CASE(a_target_outside_the_vocabulary_is_an_error_or_nan) {
  at::Tensor logits = random_tensor({1, 16}, at::kFloat, 77);
  const at::Tensor target = random_ids(1, 1, at::kLong, 78).add(12);
  if (device_under_test().is_cpu()) {
    BOOST_CHECK_THROW(token_logprobs_op(logits, target, 12), Error);
    BOOST_CHECK_THROW(cross_entropy_forward_backward_op(logits, target, 1.0, 12), Error);
  } else {
    BOOST_TEST(std::isnan(values<double>(token_logprobs_op(logits, target, 12))[0]));
    BOOST_TEST(std::isnan(values<double>(cross_entropy_forward_backward_op(logits, target, 1.0, 12))[0]));
  }
  BOOST_CHECK_THROW(token_logprobs_op(logits, target, 17), Error);
}

BOOST_AUTO_TEST_CASE(reference_gradient_is_the_derivative_of_the_reference_loss) {
  const std::vector<double> logits = random_values(3 * 5, 79);
  const std::vector<int64_t> targets = {2, kIgnoreIndex, 0};
  const auto loss = [&](const std::vector<double>& v) {
    double sum = 0;
    for (const double l : reference::cross_entropy(v, targets, 5, 4, 1.0, kIgnoreIndex).loss) sum += l;
    return sum;
  };
  check_gradient("dlogits", loss, logits,
                 reference::cross_entropy(logits, targets, 5, 4, 1.0, kIgnoreIndex).gradient);
}

}  // namespace
}  // namespace hearth
