// The distillation loss against its fp64 reference: widths around the 16-byte vector and one sweep of the
// block, padding columns, a teacher with fewer or more columns, ignored rows, and a vocabulary in two shares.
#include "kernels/reference/distillation.h"

#include <ATen/ATen.h>

#include "kernels/cross_entropy_op.h"
#include "kernels/distillation_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

const GatherStatistics kAlone = [](const at::Tensor& values) { return values.unsqueeze(0); };

const DistillationLoss kLosses[] = {
    {.divergence = DivergenceKind::ForwardKl, .temperature = 1.0, .kd_alpha = 0.5},
    {.divergence = DivergenceKind::ForwardKl, .temperature = 2.5, .kd_alpha = 1.0},
    {.divergence = DivergenceKind::ReverseKl, .temperature = 1.5, .kd_alpha = 0.3},
    {.divergence = DivergenceKind::Jsd, .beta = 0.2, .temperature = 2.0, .kd_alpha = 0.9},
};

struct Rows {
  at::Tensor student, teacher, targets;
  std::vector<int64_t> target_values;
  Rows(int64_t rows, int64_t valid, int64_t cols, int64_t teacher_cols, at::ScalarType dtype)
      : student(random_tensor({rows, cols}, dtype, 31, 2.0)),
        teacher(random_tensor({rows, teacher_cols}, dtype, 32, 2.0)),
        targets(random_ids(rows, valid, at::kLong, 33)) {
    if (rows > 1) targets[1].fill_(kIgnoreIndex);
    for (const double value : values<double>(targets)) target_values.push_back(static_cast<int64_t>(value));
  }
};

BOOST_DATA_TEST_CASE(loss_and_gradient_are_as_accurate_as_plain_arithmetic,
                     bdata::make({1, 3}) * bdata::make({1, 7, 8, 9, 511, 4095, 4096, 4097, 5000}), rows,
                     valid) {
  for (const int64_t padding : {0, 5, 8})
    for (const int64_t teacher_cols : {std::max(1, valid - 1), valid, valid + 16})
      for_each_dtype([&]<class T>(at::ScalarType dtype) {
        const int64_t cols = valid + padding, common = std::min<int64_t>(valid, teacher_cols);
        const Rows in(rows, valid, cols, teacher_cols, dtype);
        for (const DistillationLoss& loss : kLosses) {
          const auto reference_of = [&]<class U>(U) {
            return reference::distillation(values<U>(in.student), values<U>(in.teacher), in.target_values,
                                           static_cast<size_t>(cols), static_cast<size_t>(teacher_cols),
                                           static_cast<size_t>(valid), static_cast<size_t>(common), loss,
                                           kIgnoreIndex);
          };
          const auto want = reference_of(double{});
          const auto plain = reference_of(T{});
          // A sum over `common` columns in another order, each term within the largest logit's roundings; on
          // CUDA exponentials of bf16 logits are good to 2^-22.
          const double rounding = (dtype == at::kFloat ? 0x1p-24 : 0x1p-22) * 64;
          for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
            at::Tensor student = in.student.clone();
            const auto got =
                distillation_op(student, in.teacher, in.targets, {0, valid, common}, loss, kAlone, path);
            check_close("cross entropy", got.cross_entropy_N, plain.cross_entropy, want.cross_entropy,
                        rounding);
            check_close("divergence", got.divergence_N, plain.divergence, want.divergence, rounding);
            check_close("gradient", student, plain.gradient, want.gradient, rounding);
          }
        }
      });
}

BOOST_AUTO_TEST_CASE(a_vocabulary_in_two_shares_gives_what_a_whole_one_does) {
  const int64_t valid = 77, first_share = 40, common = 70;
  const Rows in(4, valid, valid, common, at::kFloat);
  for (const DistillationLoss& loss : kLosses) {
    at::Tensor whole = in.student.clone();
    const auto want = distillation_op(whole, in.teacher, in.targets, {0, valid, common}, loss, kAlone);
    // Each share answers with what the two together gather: found by running both passes of both in step.
    at::Tensor parts[2];
    DistillationResult results[2];
    std::vector<at::Tensor> gathered[2];  // by call
    for (const bool collect : {true, true, false})
      for (int share = 0; share < 2; ++share) {
        const int64_t begin = share == 0 ? 0 : first_share, end = share == 0 ? first_share : valid;
        parts[share] = in.student.narrow(1, begin, end - begin).contiguous();
        const at::Tensor teacher = in.teacher.narrow(1, begin, std::min(end, common) - begin).contiguous();
        size_t call = 0;
        std::vector<at::Tensor> seen;
        const auto gather = [&](const at::Tensor& mine) {
          seen.push_back(mine);
          const auto& theirs = gathered[1 - share];
          const at::Tensor other = call < theirs.size() ? theirs[call] : mine;
          ++call;
          return share == 0 ? at::stack({mine, other}) : at::stack({other, mine});
        };
        results[share] = distillation_op(parts[share], teacher, in.targets,
                                         {begin, end - begin, std::min(end, common) - begin}, loss, gather);
        if (collect) gathered[share] = seen;
      }
    for (const auto& result : results) {
      BOOST_TEST(compare(result.cross_entropy_N, want.cross_entropy_N, 1e-5).ok());
      BOOST_TEST(compare(result.divergence_N, want.divergence_N, 1e-5).ok());
    }
    const Diff diff = compare(at::cat({parts[0], parts[1]}, 1), whole, 2e-6);
    BOOST_TEST(diff.ok(), diff);
  }
}

// The teacher's distribution with all but the k likeliest ids as one outcome, in fp64.
struct KeptReference {
  std::vector<double> divergence, gradient;
};
KeptReference kept_reference(const Rows& in, int64_t cols, int64_t valid, const KeptTeacher& kept,
                             const DistillationLoss& loss) {
  const auto student = values<double>(in.student), logprobs = values<double>(kept.logprobs_NK),
             ids = values<double>(kept.ids_NK), tail = values<double>(kept.tail_mass_N);
  const auto k = static_cast<size_t>(kept.ids_NK.size(1));
  KeptReference out{std::vector<double>(in.target_values.size()), std::vector<double>(student.size())};
  for (size_t r = 0; r < in.target_values.size(); ++r) {
    if (in.target_values[r] == kIgnoreIndex) continue;
    const double* row = student.data() + r * static_cast<size_t>(cols);
    const auto log_p = reference::log_softmax(row, static_cast<size_t>(valid), 1.0);
    const auto log_s = reference::log_softmax(row, static_cast<size_t>(valid), loss.temperature);
    std::vector<double> t(static_cast<size_t>(valid), 0.0);
    std::vector<bool> is_kept(static_cast<size_t>(valid), false);
    double s_tail = 0, mass = tail[r];
    for (size_t i = 0; i < k; ++i) {
      const auto id = static_cast<size_t>(ids[r * k + i]);
      t[id] = std::exp(logprobs[r * k + i]);
      is_kept[id] = true;
      mass += t[id];
      out.divergence[r] += t[id] * (logprobs[r * k + i] - log_s[id]);
    }
    for (size_t c = 0; c < t.size(); ++c) s_tail += is_kept[c] ? 0.0 : std::exp(log_s[c]);
    if (tail[r] > 0) out.divergence[r] += tail[r] * (std::log(tail[r]) - std::log(s_tail));
    for (size_t c = 0; c < t.size(); ++c) {
      const double s = std::exp(log_s[c]);
      const double d = s * mass - t[c] - (is_kept[c] || tail[r] == 0 ? 0.0 : s * tail[r] / s_tail);
      const double onehot = static_cast<int64_t>(c) == in.target_values[r] ? 1.0 : 0.0;
      out.gradient[r * static_cast<size_t>(cols) + c] =
          (1 - loss.kd_alpha) * (std::exp(log_p[c]) - onehot) + loss.kd_alpha * loss.temperature * d;
    }
  }
  return out;
}

KeptTeacher keep(const at::Tensor& teacher, int64_t k, double temperature) {
  const at::Tensor logprobs = teacher.to(at::kFloat).div(temperature).log_softmax(1);
  const auto [top, ids] = logprobs.topk(k, 1);
  return {ids, top.contiguous(),
          k == teacher.size(1) ? at::zeros({teacher.size(0)}, top.options())
                               : logprobs.exp().scatter(1, ids, 0.0).sum(1)};
}

BOOST_DATA_TEST_CASE(a_kept_teacher_counts_its_tail_as_one_outcome,
                     bdata::make({9, 33, 4097}) * bdata::make({1, 4, 9}), valid, k) {
  for (const double temperature : {1.0, 2.0})
    for (const double alpha : {0.4, 1.0}) {
      const DistillationLoss loss{.temperature = temperature, .kd_alpha = alpha};
      const Rows in(3, valid, valid + 7, valid, at::kFloat);
      const KeptTeacher kept = keep(in.teacher, k, temperature);
      const auto want = kept_reference(in, valid + 7, valid, kept, loss);
      for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
        at::Tensor student = in.student.clone();
        const auto got =
            kept_distillation_op(student, kept, in.targets, {0, valid, valid}, loss, kAlone, path);
        // The student's tail is 1 minus its kept part: an fp32 rounding of 1, against a tail of at least 1e-3
        // here.
        BOOST_TEST(compare(got.divergence_N, tensor_of(want.divergence, {3}), 2e-4).ok());
        const Diff diff = compare(student, tensor_of(want.gradient, {3, valid + 7}), 1e-4);
        BOOST_TEST(diff.ok(), diff);
      }
    }
}

BOOST_AUTO_TEST_CASE(a_wholly_kept_teacher_is_the_teacher) {
  const DistillationLoss loss{.temperature = 1.5, .kd_alpha = 0.7};
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const Rows in(3, 50, 56, 50, dtype);
    at::Tensor online = in.student.clone(), offline = in.student.clone();
    const auto want = distillation_op(online, in.teacher, in.targets, {0, 50, 50}, loss, kAlone);
    const auto got =
        kept_distillation_op(offline, keep(in.teacher, 50, 1.5), in.targets, {0, 50, 50}, loss, kAlone);
    // Rows of another stride, another order of sums; and for bf16 exponentials that are good to 2^-22, in
    // terms of up to some 10 nats.
    const double order = dtype == at::kFloat ? 2e-6 : 10 * 0x1p-22;
    BOOST_TEST(compare(got.divergence_N, want.divergence_N, order).ok());
    BOOST_TEST(compare(got.cross_entropy_N, want.cross_entropy_N, order).ok());
    // Each is rounded once to the type of the logits.
    const Diff diff = compare(offline, online, dtype == at::kFloat ? 2e-6 : 0x1p-8);
    BOOST_TEST(diff.ok(), diff);
  });
}

BOOST_AUTO_TEST_CASE(equal_distributions_have_no_divergence_and_nan_stays_nan) {
  const Rows in(2, 33, 33, 33, at::kFloat);
  for (const DistillationLoss& loss : kLosses) {
    at::Tensor student = in.teacher.clone();
    const auto got = distillation_op(student, in.teacher, in.targets, {0, 33, 33}, loss, kAlone);
    BOOST_TEST(values<double>(got.divergence_N.abs().max())[0] <= 1e-6);
    student = in.student.clone();
    student[0][3].fill_(NAN);
    const auto bad = distillation_op(student, in.teacher, in.targets, {0, 33, 33}, loss, kAlone);
    BOOST_TEST(std::isnan(values<double>(bad.cross_entropy_N)[0]));
    BOOST_TEST(std::isnan(values<double>(student)[0]));
  }
}

BOOST_AUTO_TEST_CASE(reference_gradient_is_the_derivative_of_the_reference_loss) {
  const std::vector<double> student = random_values(2 * 6, 41), teacher = random_values(2 * 5, 42);
  const std::vector<int64_t> targets{2, 4};
  for (const DistillationLoss& loss : kLosses) {
    const auto at = [&](const std::vector<double>& x) {
      return reference::distillation(x, teacher, targets, 6, 5, 6, 5, loss, kIgnoreIndex);
    };
    const auto value = [&](const std::vector<double>& x) {
      const auto out = at(x);
      double sum = 0;
      for (size_t r = 0; r < 2; ++r)
        sum += (1 - loss.kd_alpha) * out.cross_entropy[r] +
               loss.kd_alpha * loss.temperature * loss.temperature * out.divergence[r];
      return sum;
    };
    check_gradient("d loss", value, student, at(student).gradient);
  }
}

BOOST_AUTO_TEST_CASE(wrong_shapes_are_refused) {
  at::Tensor student = random_tensor({2, 8}, at::kFloat, 51);
  const at::Tensor teacher = random_tensor({2, 8}, at::kFloat, 52), targets = random_ids(2, 8, at::kLong, 53);
  const DistillationLoss loss;
  BOOST_CHECK_THROW(distillation_op(student, teacher.narrow(0, 0, 1), targets, {0, 8, 8}, loss, kAlone),
                    Error);
  BOOST_CHECK_THROW(distillation_op(student, teacher, targets, {0, 9, 8}, loss, kAlone), Error);
  BOOST_CHECK_THROW(distillation_op(student, teacher.to(at::kBFloat16), targets, {0, 8, 8}, loss, kAlone),
                    Error);
  DistillationLoss bad = loss;
  bad.temperature = 0;
  BOOST_CHECK_THROW(distillation_op(student, teacher, targets, {0, 8, 8}, bad, kAlone), Error);
}

}  // namespace
}  // namespace hearth
