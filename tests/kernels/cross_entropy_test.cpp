// Cross entropy against its fp64 reference. Vocabularies straddle the vector width, one block's sweep and the
// sizes at which a row takes larger blocks, clusters of 2, 4 and 8 of them, and the path that reads twice;
// padded columns and a row stride that exceeds them are included. The vocabulary-parallel entries are checked
// share by share, and joined against whole rows.
#include "kernels/reference/cross_entropy.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <utility>

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
  // At and one past each size at which the kernels change: 18432, 49152 and 1, 2, 4 times 115200 bytes, in
  // fp32 or bf16.
  for (const int64_t vocab : {4608, 4616, 9216, 9224, 12288, 12296, 24576, 24584, 28800, 28808, 57600, 57608,
                              115200, 115208, 230400, 230408})
    check_shape({2, vocab, vocab, vocab}, at::kLong);
  check_shape({3, 49152, 49152, 49152}, at::kInt);
  check_shape({3, 50257, 50304, 50304}, at::kInt);
  check_shape({2, 128256, 128256, 128264}, at::kLong);
  check_shape({2, 151936, 152064, 152065}, at::kLong);  // odd stride: every second row is unaligned
  check_shape({2, 70000, 152064, 152064}, at::kLong);   // parts of a row that are all padding
  check_shape({1, 256000, 256000, 256000}, at::kLong);
  check_shape({1, 462856, 462856, 462856}, at::kLong);  // too wide for a cluster in fp32
  check_shape({1, 925704, 925704, 925704}, at::kLong);  // and in bf16
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

// A vocabulary split over ranks. Share s holds the ids [s * padded, (s + 1) * padded) that are below vocab,
// so the last shares may hold padding, or nothing else.
struct Split {
  int64_t vocab, shares, padded, stride;
  int64_t first_id(int64_t share) const { return share * padded; }
  int64_t valid(int64_t share) const { return std::clamp<int64_t>(vocab - first_id(share), 0, padded); }
  reference::ShareColumns columns(int64_t share) const {
    return {static_cast<size_t>(padded), static_cast<size_t>(valid(share)), first_id(share)};
  }
};

constexpr double kForeign = 1e30;  // in padding and between rows: would show in every result that it reached

// [rows, stride], of which share() is the first `padded` columns.
at::Tensor storage_of_share(const at::Tensor& logits_NV, const Split& split, int64_t share) {
  at::Tensor storage = at::empty({logits_NV.size(0), split.stride}, logits_NV.options()).fill_(kForeign);
  const int64_t valid = split.valid(share);
  if (valid > 0) storage.narrow(1, 0, valid).copy_(logits_NV.narrow(1, split.first_id(share), valid));
  return storage;
}

std::vector<at::Tensor> storages_of_shares(const at::Tensor& logits_NV, const Split& split) {
  std::vector<at::Tensor> out;
  for (int64_t s = 0; s < split.shares; ++s) out.push_back(storage_of_share(logits_NV, split, s));
  return out;
}

VocabParallelLoss joined_loss(const std::vector<at::Tensor>& storages, const at::Tensor& targets,
                              const Split& split, KernelPath path) {
  std::vector<at::Tensor> stats;
  for (int64_t s = 0; s < split.shares; ++s)
    stats.push_back(vocab_parallel_statistics_op(storages[static_cast<size_t>(s)].narrow(1, 0, split.padded),
                                                 targets, split.first_id(s), split.valid(s), kIgnoreIndex,
                                                 path));
  return vocab_parallel_loss_op(at::stack(stats), targets, split.vocab);
}

// Targets in turn: an edge of a share, ignored, random.
at::Tensor targets_at_edges(int64_t rows, const Split& split, at::ScalarType dtype) {
  std::vector<int64_t> edges = {split.vocab - 1, 0};
  for (int64_t s = 1; s < split.shares && split.valid(s) > 0; ++s)
    edges.insert(edges.end(), {split.first_id(s), split.first_id(s) - 1});
  at::Tensor targets = random_ids(rows, split.vocab, dtype, 82);
  for (int64_t r = 0; r < rows; r += 3)
    targets.select(0, r).fill_(edges[static_cast<size_t>(r / 3) % edges.size()]);
  for (int64_t r = 1; r < rows; r += 3) targets.select(0, r).fill_(kIgnoreIndex);
  return targets;
}

// What exp(x - largest) costs a sum of them, relative to the sum: with d the difference, 4 ulp of the
// exponential (the hardware's approximate one included) and |d| ulp of its argument. Largest over the rows.
double sum_error(const std::vector<double>& logits, size_t vocab) {
  double worst = 0;
  for (size_t begin = 0; begin < logits.size(); begin += vocab) {
    double largest = -INFINITY, sum = 0, error = 0;
    for (size_t c = 0; c < vocab; ++c) largest = std::fmax(largest, logits[begin + c]);
    for (size_t c = 0; c < vocab; ++c) {
      const double d = logits[begin + c] - largest, e = std::exp(d);
      sum += e;
      error += 0x1p-22 * e * (1 - d);
    }
    worst = std::fmax(worst, error / sum);
  }
  return worst;
}

double largest_of(const std::vector<double>& v) {
  double largest = 0;
  for (const double x : v) largest = std::fmax(largest, std::abs(x));
  return largest;
}

// Every third of [rows, 3].
template <class S>
std::vector<S> column_of(const std::vector<S>& stats_N3, size_t column) {
  std::vector<S> out;
  for (size_t i = column; i < stats_N3.size(); i += 3) out.push_back(stats_N3[i]);
  return out;
}

template <class S>
void check_statistics(const at::Tensor& got_N3, const std::vector<S>& plain, const std::vector<double>& want,
                      double error) {
  const auto got = values<double>(got_N3);
  BOOST_TEST(column_of(got, 0) == column_of(want, 0), boost::test_tools::per_element());
  BOOST_TEST(column_of(got, 2) == column_of(want, 2), boost::test_tools::per_element());
  const auto sums = column_of(want, 1);
  check_close("sum", got_N3.select(1, 1), column_of(plain, 1), sums, error * largest_of(sums));
}

// A split with random logits: the fp64 truth, what plain arithmetic in T makes of it, and the whole-row
// entry.
template <class T>
struct SplitCase {
  Split split;
  at::Tensor logits_NV, targets_N;
  std::vector<at::Tensor> storages;
  std::vector<int64_t> ids;
  double error;  // of sums of exponentials
  std::vector<std::vector<double>> want;
  std::vector<std::vector<float>> plain;
  reference::VocabParallelLoss<double> want_joined;
  reference::VocabParallelLoss<float> plain_joined;

  SplitCase(int64_t rows, const Split& split_in, at::ScalarType id_type, at::ScalarType dtype)
      : split(split_in),
        logits_NV(random_tensor({rows, split.vocab}, dtype, 81, 4.0)),
        targets_N(targets_at_edges(rows, split, id_type)),
        storages(storages_of_shares(logits_NV, split)),
        ids(values<int64_t>(targets_N)),
        error(sum_error(values<double>(logits_NV), static_cast<size_t>(split.vocab))) {
    for (int64_t s = 0; s < split.shares; ++s) {
      const auto columns = split.columns(s);
      want.push_back(
          reference::vocab_parallel_statistics(values<double>(share(s)), ids, columns, kIgnoreIndex));
      plain.push_back(reference::vocab_parallel_statistics(values<T>(share(s)), ids, columns, kIgnoreIndex));
    }
    want_joined = reference::vocab_parallel_loss(want, ids, kIgnoreIndex);
    plain_joined = reference::vocab_parallel_loss(plain, ids, kIgnoreIndex);
  }

  const at::Tensor& storage(int64_t s) const { return storages[static_cast<size_t>(s)]; }
  at::Tensor share(int64_t s) const { return storage(s).narrow(1, 0, split.padded); }

  void check_statistics_of_shares(KernelPath path) const {
    for (int64_t s = 0; s < split.shares; ++s)
      check_statistics(vocab_parallel_statistics_op(share(s), targets_N, split.first_id(s), split.valid(s),
                                                    kIgnoreIndex, path),
                       plain[static_cast<size_t>(s)], want[static_cast<size_t>(s)], error);
  }

  // The entry that sees whole rows, and how far it may be from the truth.
  struct Whole {
    at::Tensor loss_N, gradient_NV;
    double loss_bound, gradient_bound;
  };
  Whole whole_row() const {
    const auto vocab = static_cast<size_t>(split.vocab);
    const auto truth =
        reference::cross_entropy(values<double>(logits_NV), ids, vocab, vocab, kScale, kIgnoreIndex);
    const auto rough =
        reference::cross_entropy(values<T>(logits_NV), ids, vocab, vocab, kScale, kIgnoreIndex);
    // The decomposition itself: joined shares are the whole row, to rounding of fp64.
    const int64_t rows = logits_NV.size(0);
    const Diff identity = compare(tensor_of(want_joined.loss, {rows}), tensor_of(truth.loss, {rows}), 1e-13);
    BOOST_TEST(identity.ok(), identity);
    at::Tensor gradient = logits_NV.clone();
    const at::Tensor loss = cross_entropy_forward_backward_op(gradient, targets_N, kScale, split.vocab);
    const std::vector<float> rough_loss(rough.loss.begin(), rough.loss.end());
    return {loss, gradient, tolerance(rough_loss, truth.loss),
            tolerance(rough.gradient, truth.gradient) + 4 * 0x1p-24 * kScale};
  }

  void check_gradient_of_share(int64_t s, const at::Tensor& log_sum_exp_N, const Whole& whole,
                               KernelPath path) const {
    const auto columns = split.columns(s);
    const auto want_gradient = reference::vocab_parallel_gradient(
        values<double>(share(s)), ids, want_joined.log_sum_exp, columns, kScale, kIgnoreIndex);
    const auto plain_gradient = reference::vocab_parallel_gradient(
        values<T>(share(s)), ids, plain_joined.log_sum_exp, columns, kScale, kIgnoreIndex);
    // A probability is off by what log_sum_exp is (its own rounding, and the sum's error), by 4 ulp of its
    // exponential and by |d| exp(-|d|) < 1/2 times 4 ulp for the argument; softmax - 1 rounds once more.
    const double extra = kScale * (error + 0x1p-24 * (7 + largest_of(want_joined.log_sum_exp)));
    const at::Tensor work = storage(s).clone();
    at::Tensor gradient = work.narrow(1, 0, split.padded);
    vocab_parallel_gradient_op(gradient, targets_N, log_sum_exp_N, split.first_id(s), split.valid(s), kScale,
                               kIgnoreIndex, path);
    check_close("gradient", gradient, plain_gradient, want_gradient, extra);
    if (split.valid(s) > 0) {
      const Diff diff = compare(gradient.narrow(1, 0, split.valid(s)),
                                whole.gradient_NV.narrow(1, split.first_id(s), split.valid(s)),
                                whole.gradient_bound + tolerance(plain_gradient, want_gradient) + extra);
      BOOST_TEST(diff.ok(), "gradient against the whole row: " << diff);
    }
    const int64_t gap = split.stride - split.padded, padding = split.padded - split.valid(s);
    BOOST_TEST(gradient.narrow(1, split.valid(s), padding).eq(0).all().item<bool>());
    BOOST_TEST(bit_equal(work.narrow(1, split.padded, gap), storage(s).narrow(1, split.padded, gap)));
  }

  void check() const {
    const Whole whole = whole_row();
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      check_statistics_of_shares(path);
      const VocabParallelLoss got = joined_loss(storages, targets_N, split, path);
      check_close("loss", got.loss_N, plain_joined.loss, want_joined.loss, error);
      check_close("log_sum_exp", got.log_sum_exp_N, plain_joined.log_sum_exp, want_joined.log_sum_exp, error);
      const Diff diff = compare(got.loss_N, whole.loss_N,
                                whole.loss_bound + tolerance(plain_joined.loss, want_joined.loss) + error);
      BOOST_TEST(diff.ok(), "loss against the whole row: " << diff);
      for (int64_t s = 0; s < split.shares; ++s) check_gradient_of_share(s, got.log_sum_exp_N, whole, path);
    }
  }
};

void check_split(int64_t rows, const Split& split, at::ScalarType id_type) {
  BOOST_TEST_CONTEXT(rows << " rows, vocabulary of " << split.vocab << " in " << split.shares << " shares of "
                          << split.padded << ", stride " << split.stride) {
    for_each_dtype([&]<class T>(at::ScalarType dtype) { SplitCase<T>(rows, split, id_type, dtype).check(); });
  }
}

BOOST_DATA_TEST_CASE(joined_shares_are_the_whole_row, bdata::make({1, 2, 16}), rows) {
  check_split(rows, {1000, 1, 1000, 1000}, at::kLong);
  check_split(rows, {1000, 1, 1024, 1031}, at::kInt);
  check_split(rows, {1000, 2, 512, 512}, at::kInt);
  check_split(rows, {1000, 2, 500, 504}, at::kLong);
  check_split(rows, {1000, 3, 334, 335}, at::kLong);  // unaligned
  check_split(rows, {1000, 3, 384, 384}, at::kLong);
  check_split(rows, {1000, 5, 256, 256}, at::kLong);  // the last share is all padding
  check_split(rows, {1000, 5, 256, 264}, at::kInt);
  check_split(rows, {1000, 5, 200, 200}, at::kLong);
  check_split(rows, {3, 5, 1, 1}, at::kLong);
}

// Widths around one vector, one sweep of a block and the sizes at which the kernels change (above), in either
// dtype; the second share is partly padding.
BOOST_DATA_TEST_CASE(shares_at_tile_edges,
                     bdata::make({1,    4,    7,    8,    9,    255,  256,  257,   512,   520,  1024,
                                  1032, 2048, 2056, 4608, 4616, 9216, 9224, 12288, 24584, 57608}),
                     padded) {
  check_split(2, {2 * padded - padded / 3, 2, padded, padded}, at::kLong);
}

// One row of three shares of 100, all logits at `background`.
struct ThreeShares {
  Split split{300, 3, 100, 100};
  at::Tensor logits_NV, targets_N;
  std::vector<at::Tensor> storages;
  ThreeShares(double background, int64_t target, const std::vector<std::pair<int64_t, double>>& columns)
      : logits_NV(random_tensor({1, 300}, at::kFloat, 83).mul(0.0).add(background)),
        targets_N(random_ids(1, 1, at::kLong, 84).add(target)) {
    for (const auto& [column, value] : columns) logits_NV.select(1, column).fill_(value);
    storages = storages_of_shares(logits_NV, split);
  }
  VocabParallelLoss loss(KernelPath path) const { return joined_loss(storages, targets_N, split, path); }
  // The whole row's gradient, share by share.
  at::Tensor gradient(KernelPath path) const {
    std::vector<at::Tensor> out;
    for (int64_t s = 0; s < split.shares; ++s) {
      out.push_back(storages[static_cast<size_t>(s)].clone());
      vocab_parallel_gradient_op(out.back(), targets_N, loss(path).log_sum_exp_N, split.first_id(s),
                                 split.valid(s), 1.0, kIgnoreIndex, path);
    }
    return at::cat(out, 1);
  }
};

double first_of(const at::Tensor& tensor) {
  return values<double>(tensor)[0];
}

BOOST_AUTO_TEST_CASE(far_apart_shares_neither_overflow_nor_vanish) {
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const ThreeShares sure(-1e4, 107, {{107, 1e4}}), wrong(-1e4, 8, {{107, 1e4}}), even(1e4, 299, {});
    BOOST_TEST(first_of(sure.loss(path).loss_N) == 0.0);
    BOOST_TEST(first_of(wrong.loss(path).loss_N) == 2e4);
    BOOST_TEST(sure.gradient(path).eq(0).all().item<bool>());
    BOOST_TEST(values<double>(wrong.gradient(path))[8] == -1.0);
    BOOST_TEST(values<double>(wrong.gradient(path))[107] == 1.0);
    // log(300) survives beside 1e4 in the loss; log_sum_exp keeps 2^-10 of it, an ulp of 1e4.
    BOOST_TEST(std::abs(first_of(even.loss(path).loss_N) - std::log(300.0)) <= 8 * 0x1p-24 * std::log(300.0));
    BOOST_TEST(std::abs(first_of(even.loss(path).log_sum_exp_N) - 1e4 - std::log(300.0)) <= 0x1p-10);
  }
}

BOOST_AUTO_TEST_CASE(columns_at_minus_infinity_have_no_weight) {
  std::vector<std::pair<int64_t, double>> closed;
  for (int64_t c = 50; c < 200; ++c) closed.emplace_back(c, -INFINITY);  // half of share 0, all of share 1
  const ThreeShares open(0.5, 299, closed), into(0.5, 120, closed);
  std::vector<std::pair<int64_t, double>> all;
  for (int64_t c = 0; c < 300; ++c) all.emplace_back(c, -INFINITY);
  const ThreeShares nothing(0.5, 299, all);
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const auto share = values<double>(
        vocab_parallel_statistics_op(open.storages[1], open.targets_N, 100, 100, kIgnoreIndex, path));
    BOOST_TEST(share == (std::vector<double>{-INFINITY, 0.0, 0.0}), boost::test_tools::per_element());
    BOOST_TEST(std::abs(first_of(open.loss(path).loss_N) - std::log(150.0)) <= 8 * 0x1p-24 * std::log(150.0));
    BOOST_TEST(open.gradient(path).narrow(1, 50, 150).eq(0).all().item<bool>());
    BOOST_TEST(first_of(into.loss(path).loss_N) == INFINITY);  // the model gave it probability 0
    BOOST_TEST(std::isnan(first_of(nothing.loss(path).loss_N)));
    BOOST_TEST(nothing.gradient(path).isnan().all().item<bool>());
  }
}

BOOST_AUTO_TEST_CASE(a_nan_or_infinite_logit_of_any_share_reaches_the_loss) {
  for (const double bad : {std::nan(""), static_cast<double>(INFINITY)})
    for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
      const ThreeShares one(0.0, 8, {{107, bad}});
      BOOST_TEST(std::isnan(first_of(one.loss(path).loss_N)));
      BOOST_TEST(one.gradient(path).isnan().all().item<bool>());
    }
  std::vector<std::pair<int64_t, double>> share_of_nan;
  for (int64_t c = 100; c < 200; ++c) share_of_nan.emplace_back(c, std::nan(""));
  BOOST_TEST(std::isnan(first_of(ThreeShares(0.0, 8, share_of_nan).loss(KernelPath::Fused).loss_N)));
}

// Ids in the padding of the last share, beyond every share, and negative ones.
BOOST_DATA_TEST_CASE(a_target_on_no_rank_makes_its_row_nan, bdata::make({1000, 1023, 1024, 5000, -1, -99}),
                     bad) {
  const Split split{1000, 4, 256, 256};
  const at::Tensor logits = random_tensor({3, split.vocab}, at::kFloat, 85);
  at::Tensor targets = random_ids(3, split.vocab, at::kLong, 86);
  targets.select(0, 1).fill_(bad);
  const auto storages = storages_of_shares(logits, split);
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const VocabParallelLoss got = joined_loss(storages, targets, split, path);
    const auto loss = values<double>(got.loss_N);
    BOOST_TEST(std::isnan(loss[1]));
    BOOST_TEST((std::isfinite(loss[0]) && std::isfinite(loss[2])));
    for (int64_t s = 0; s < split.shares; ++s) {
      at::Tensor gradient = storages[static_cast<size_t>(s)].clone();
      vocab_parallel_gradient_op(gradient, targets, got.log_sum_exp_N, split.first_id(s), split.valid(s),
                                 kScale, kIgnoreIndex, path);
      BOOST_TEST(gradient.select(0, 1).narrow(0, 0, split.valid(s)).isnan().all().item<bool>());
      BOOST_TEST(gradient.select(0, 0).isfinite().all().item<bool>());
      BOOST_TEST(gradient.select(0, 2).isfinite().all().item<bool>());
    }
  }
}

// Also where ignore_index is an id of the vocabulary.
BOOST_DATA_TEST_CASE(ignored_rows_keep_their_statistics, bdata::make({-100, 150}), ignore) {
  const at::Tensor logits = random_tensor({2, 256}, at::kFloat, 87),
                   kept = random_ids(2, 1, at::kLong, 88).add(160);
  const at::Tensor ignored = at::full_like(kept, ignore);
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    const at::Tensor stats = vocab_parallel_statistics_op(logits, ignored, 100, 256, ignore, path),
                     other = vocab_parallel_statistics_op(logits, kept, 100, 256, ignore, path);
    BOOST_TEST(bit_equal(stats.narrow(1, 0, 2), other.narrow(1, 0, 2)));
    BOOST_TEST(stats.select(1, 2).eq(0).all().item<bool>());
    BOOST_TEST(bit_equal(other.select(1, 2), logits.select(1, 60)));
    const VocabParallelLoss got = vocab_parallel_loss_op(stats.unsqueeze(0), ignored, 356, ignore);
    BOOST_TEST(got.loss_N.eq(0).all().item<bool>());
    at::Tensor gradient = logits.clone();
    vocab_parallel_gradient_op(gradient, ignored, got.log_sum_exp_N, 100, 256, kScale, ignore, path);
    BOOST_TEST(gradient.eq(0).all().item<bool>());
  }
}

BOOST_AUTO_TEST_CASE(vocab_parallel_bits_repeat_for_any_number_of_threads) {
  const Split split{30000, 3, 10240, 10240};
  const at::Tensor logits = random_tensor({64, split.vocab}, at::kBFloat16, 89),
                   targets = targets_at_edges(64, split, at::kLong);
  const auto storages = storages_of_shares(logits, split);
  const int threads = at::get_num_threads();
  std::vector<VocabParallelLoss> losses;
  std::vector<at::Tensor> gradients;
  for (const int count : {1, 2, 2}) {
    at::set_num_threads(count);
    losses.push_back(joined_loss(storages, targets, split, KernelPath::Fused));
    gradients.push_back(storages[1].clone());
    vocab_parallel_gradient_op(gradients.back(), targets, losses.back().log_sum_exp_N, split.first_id(1),
                               split.valid(1), kScale);
  }
  at::set_num_threads(threads);
  for (size_t i = 1; i < 3; ++i) {
    BOOST_TEST(bit_equal(losses[0].loss_N, losses[i].loss_N));
    BOOST_TEST(bit_equal(losses[0].log_sum_exp_N, losses[i].log_sum_exp_N));
    BOOST_TEST(bit_equal(gradients[0], gradients[i]));
  }
}

BOOST_AUTO_TEST_CASE(vocab_parallel_inputs_are_checked) {
  at::Tensor logits = random_tensor({2, 16}, at::kFloat, 90);
  const at::Tensor targets = random_ids(2, 16, at::kLong, 91), lse = random_tensor({2}, at::kFloat, 92);
  BOOST_CHECK_THROW(vocab_parallel_statistics_op(logits, targets, 0, 17), Error);
  BOOST_CHECK_THROW(vocab_parallel_statistics_op(logits, targets, 0, -1), Error);
  BOOST_CHECK_THROW(vocab_parallel_statistics_op(logits, targets, -1, 16), Error);
  BOOST_CHECK_THROW(vocab_parallel_statistics_op(logits, targets.narrow(0, 0, 1), 0, 16), Error);
  const at::Tensor stats = vocab_parallel_statistics_op(logits, targets, 0, 16);
  BOOST_CHECK_THROW(vocab_parallel_loss_op(stats, targets, 16), Error);  // no axis of shares
  BOOST_CHECK_THROW(vocab_parallel_loss_op(stats.unsqueeze(0), targets, 0), Error);
  BOOST_CHECK_THROW(vocab_parallel_loss_op(stats.unsqueeze(0).to(at::kBFloat16), targets, 16), Error);
  BOOST_CHECK_THROW(vocab_parallel_gradient_op(logits, targets, lse.narrow(0, 0, 1), 0, 16, 1.0), Error);
  BOOST_CHECK_THROW(vocab_parallel_gradient_op(logits, targets, lse.to(at::kBFloat16), 0, 16, 1.0), Error);
  BOOST_TEST(vocab_parallel_statistics_op(logits.narrow(0, 0, 0), targets.narrow(0, 0, 0), 0, 16).size(0) ==
             0);
}

}  // namespace
}  // namespace hearth
