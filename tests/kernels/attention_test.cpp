// Attention against its fp64 reference: sequences and documents around cuDNN's tiles of 64 and 128 rows, the
// heads of real models, and outputs whose memory held NaN before. On the CPU this tests the plain path, on
// the GPU both.
#include "kernels/reference/attention.h"

#include <ATen/ops/full.h>
#include <fmt/core.h>

#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#ifdef HEARTH_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

#include "kernels/attention_op.h"
#include "tests/kernels/kernel_test_support.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
using reference::Bf16;

struct Case {
  int64_t batch, sequence;
  AttentionHeads heads;
  std::vector<int32_t> starts;  // empty: no documents
};

std::string describe_case(const Case& c) {
  return fmt::format("{} x {}, {}+{} heads of {}, {} documents", c.batch, c.sequence, c.heads.query,
                     c.heads.kv, c.heads.width, c.starts.size());
}

AttentionCall call_of(const Case& c) {
  AttentionCall call{c.batch, c.sequence, c.heads, nullptr};
  if (c.starts.empty()) return call;
  auto documents = attention_documents(c.starts, c.batch * c.sequence, c.sequence);
  const auto table = attention_document_table(documents, c.heads);
  documents.table =
      at::from_blob(const_cast<int64_t*>(table.data()), {static_cast<int64_t>(table.size())}, at::kLong)
          .clone()
          .to(device_under_test());
  call.documents = std::make_shared<const AttentionDocuments>(std::move(documents));
  return call;
}

reference::AttentionLayout layout_of(const Case& c) {
  reference::AttentionLayout layout{{},
                                    static_cast<size_t>(c.batch * c.sequence),
                                    static_cast<size_t>(c.heads.query),
                                    static_cast<size_t>(c.heads.kv),
                                    static_cast<size_t>(c.heads.width)};
  layout.starts.assign(c.starts.begin(), c.starts.end());
  for (int64_t b = 0; c.starts.empty() && b < c.batch; ++b)
    layout.starts.push_back(static_cast<size_t>(b * c.sequence));
  return layout;
}

at::Tensor random_qkv(const Case& c, at::ScalarType dtype, uint64_t seed) {
  return random_tensor({c.batch * c.sequence, c.heads.query + 2 * c.heads.kv, c.heads.width}, dtype, seed);
}
at::Tensor random_gradient(const Case& c, at::ScalarType dtype, uint64_t seed) {
  return random_tensor({c.batch * c.sequence, c.heads.query * c.heads.width}, dtype, seed);
}

// What the allocator hands out next on the device holds NaN: an element that nobody writes is found.
void poison(const at::Tensor& like) {
  if (like.is_cpu()) return;  // no memory is kept there
  std::vector<at::Tensor> blocks;
  for (int64_t elements = 1 << 10; elements <= 1 << 24; elements *= 4)
    for (int i = 0; i < 4; ++i)
      blocks.push_back(at::full({elements}, std::numeric_limits<double>::quiet_NaN(),
                                at::TensorOptions(like.device()).dtype(at::kFloat)));
}

// [N, H] of either form of the statistics.
at::Tensor by_row(const at::Tensor& statistics) {
  return statistics.dim() == 2 ? statistics : statistics.transpose(1, 2).reshape({-1, statistics.size(1)});
}

// Heads [first, first + count) of every row of [N, H + 2K, W].
template <class T>
std::vector<T> heads_of(const std::vector<T>& qkv, const reference::AttentionLayout& l, size_t first,
                        size_t count) {
  std::vector<T> out;
  for (size_t row = 0; row < l.rows; ++row) {
    const auto begin = qkv.begin() + static_cast<std::ptrdiff_t>(l.q(row, first));
    out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(count * l.width));
  }
  return out;
}

template <class T>
void check_values(const Case& c, const at::Tensor& qkv, KernelPath path) {
  const AttentionCall call = call_of(c);
  const reference::AttentionLayout layout = layout_of(c);
  const at::Tensor d_out = random_gradient(c, qkv.scalar_type(), 72);
  const auto want = reference::attention_forward(values<double>(qkv), layout);
  const auto plain = reference::attention_forward(values<T>(qkv), layout);
  const auto want_gradient =
      reference::attention_backward(values<double>(d_out), values<double>(qkv), want, layout);
  const auto plain_gradient = reference::attention_backward(values<T>(d_out), values<T>(qkv), plain, layout);
  poison(qkv);
  const AttentionResult got = attention_forward_op(qkv, call, path);
  const at::Tensor d_qkv = attention_backward_op(d_out, qkv, got, call, path);
  const std::string name = describe_case(c);
  check_close(name + ": out", got.out_NE, plain.out, want.out);
  // fp32 whatever T is: sums of up to `sequence` terms, each off by a few units in the last place.
  double largest = 1;
  for (const double value : want.log_sum_exp) largest = std::fmax(largest, std::abs(value));
  const Diff statistics =
      compare(by_row(got.statistics), tensor_of(want.log_sum_exp, by_row(got.statistics).sizes()),
              2e-6 * largest * std::sqrt(static_cast<double>(c.heads.width)));
  BOOST_TEST(statistics.ok(), name << ": statistics: " << statistics);
  // dq and dk come from p (dp - mean), where dp and mean, of size sqrt(W) for these inputs, may cancel to
  // nothing; in fp32, whatever T is, they are off by some units in the last place, and p by as many of the
  // scores.
  const double operand =
      qkv.narrow(1, 0, c.heads.query + c.heads.kv).abs().max().to(at::kDouble).item<double>();
  const double cancelled = 4 * 0x1p-24 * largest * operand;  // sqrt(W) cancels against the scale
  // Each section by itself: they differ in size.
  const size_t heads = layout.heads, kv = layout.kv_heads;
  const std::tuple<const char*, size_t, size_t, double> sections[] = {
      {": dq", 0, heads, cancelled}, {": dk", heads, kv, cancelled}, {": dv", heads + kv, kv, 0}};
  for (const auto& [what, first, count, extra] : sections)
    check_close(name + what, d_qkv.narrow(1, static_cast<int64_t>(first), static_cast<int64_t>(count)),
                heads_of(plain_gradient, layout, first, count), heads_of(want_gradient, layout, first, count),
                extra);
}

void check_values(const Case& c, const at::Tensor& qkv) {
  if (qkv.is_cpu()) {
    check_values<float>(c, qkv, KernelPath::Plain);
  } else {
    check_values<Bf16>(c, qkv, KernelPath::Fused);
  }
}

at::ScalarType dtype_under_test() {
  return device_under_test().is_cpu() ? at::kFloat : at::kBFloat16;
}
void check(const Case& c) {
  check_values(c, random_qkv(c, dtype_under_test(), 71));
}

const std::vector<AttentionHeads> kHeads{{9, 3, 64}, {4, 1, 128}, {2, 2, 64}};

std::vector<int32_t> every(int32_t step, int32_t rows) {
  std::vector<int32_t> starts;
  for (int32_t row = 0; row < rows; row += step) starts.push_back(row);
  return starts;
}

BOOST_AUTO_TEST_CASE(sequences_around_tiles_are_as_accurate_as_plain_arithmetic) {
  for (const int64_t sequence : {2, 7, 63, 64, 65, 127, 128, 129, 200})
    for (const AttentionHeads& heads : kHeads) check({2, sequence, heads, {}});
}

BOOST_AUTO_TEST_CASE(many_heads) {
  for (const AttentionHeads& heads : {AttentionHeads{32, 8, 64}, {32, 8, 128}, {32, 32, 128}, {14, 2, 64}}) {
    check({1, 66, heads, {}});
    check({1, 66, heads, {0, 20}});
  }
}

// Lengths of 1, of tiles and around them; one document a sequence; more documents than the smallest capacity,
// and than the one before; then fewer again, with plans that exist.
BOOST_AUTO_TEST_CASE(documents_are_as_accurate_as_plain_arithmetic) {
  const std::vector<std::vector<int32_t>> layouts{{0, 200},
                                                  {0, 1, 2, 65, 129, 200, 201, 399},
                                                  {0, 64, 128, 192, 200, 328},
                                                  every(20, 400),
                                                  every(4, 400),
                                                  {0, 72, 200, 263}};
  for (const auto& starts : layouts)
    for (const AttentionHeads& heads : kHeads) check({2, 200, heads, starts});
  check({1, 64, kHeads[0], every(1, 64)});
  check({4, 200, kHeads[1], {0, 7, 200, 400, 500, 600, 799}});
}

// Rows whose scores all lie near -100, so that exp(-log_sum_exp) overflows fp32: a row or a key that is not
// there must be hidden before it is exponentiated. Fixed in cuDNN 9.26 for other masks than ours.
BOOST_AUTO_TEST_CASE(very_negative_scores) {
  for (const int64_t sequence : {64, 192, 200})
    for (const bool documents : {false, true}) {
      Case c{2, sequence, {4, 2, 64}, {}};
      if (documents)
        c.starts = {0, 5, static_cast<int32_t>(sequence), static_cast<int32_t>(sequence + 64 - 1)};
      at::Tensor qkv = random_qkv(c, dtype_under_test(), 73);
      qkv.narrow(1, 0, 4).mul_(0.05).add_(3.5);
      qkv.narrow(1, 4, 2).mul_(0.05).sub_(3.5);
      check_values(c, qkv);
    }
}

BOOST_AUTO_TEST_CASE(a_document_does_not_see_another) {
  const Case c{2, 200, {9, 3, 64}, {0, 70, 200, 210}};
  const AttentionCall call = call_of(c);
  const at::Tensor qkv = random_qkv(c, dtype_under_test(), 74),
                   d_out = random_gradient(c, dtype_under_test(), 75);
  at::Tensor other = qkv.clone();
  other.narrow(0, 70, 130).copy_(random_qkv(c, dtype_under_test(), 76).narrow(0, 70, 130));
  const auto base = attention_forward_op(qkv, call), changed = attention_forward_op(other, call);
  for (const auto& [first, rows] : {std::pair{0, 70}, {200, 200}})
    BOOST_TEST(bit_equal(base.out_NE.narrow(0, first, rows), changed.out_NE.narrow(0, first, rows)));
  BOOST_TEST(!bit_equal(base.out_NE.narrow(0, 70, 130), changed.out_NE.narrow(0, 70, 130)));
  const at::Tensor d_base = attention_backward_op(d_out, qkv, base, call),
                   d_changed = attention_backward_op(d_out, other, changed, call);
  // Keys and values get their gradient in a fixed order; queries do not on the GPU.
  for (const auto& [first, rows] : {std::pair{0, 70}, {200, 200}})
    BOOST_TEST(bit_equal(d_base.narrow(0, first, rows).narrow(1, 9, 6),
                         d_changed.narrow(0, first, rows).narrow(1, 9, 6)));
}

BOOST_AUTO_TEST_CASE(plain_path_agrees_in_bf16) {
  const Case c{2, 65, {4, 2, 64}, {0, 30, 65}};
  check_values<Bf16>(c, random_qkv(c, at::kBFloat16, 77), KernelPath::Plain);
}

BOOST_AUTO_TEST_CASE(reference_backward_is_the_derivative_of_reference_forward) {
  const reference::AttentionLayout layout{{0, 3, 4}, 6, 4, 2, 3};
  const auto qkv = random_values(6 * 8 * 3, 78), d_out = random_values(6 * 4 * 3, 79);
  check_gradient(
      "d_qkv",
      [&](const auto& v) { return weighted_sum(d_out, reference::attention_forward(v, layout).out); }, qkv,
      reference::attention_backward(d_out, qkv, reference::attention_forward(qkv, layout), layout));
}

// Plans are few: the kernels see a capacity and a bound that hardly vary.
BOOST_AUTO_TEST_CASE(documents_round_up) {
  const auto capacity = [](int32_t step) {
    return attention_documents(every(step, 4096), 4096, 2048).capacity;
  };
  BOOST_TEST(capacity(2048) == 16);
  BOOST_TEST(capacity(256) == 16);
  BOOST_TEST(capacity(240) == 32);
  BOOST_TEST(capacity(64) == 64);
  const auto longest = [](std::vector<int32_t> starts) {
    return attention_documents(std::move(starts), 4096, 2048).longest;
  };
  BOOST_TEST(longest({0, 2048}) == 2048);
  BOOST_TEST(longest(every(1024, 4096)) == 1024);
  BOOST_TEST(longest(every(1000, 4096)) == 1024);
  BOOST_TEST(longest(every(8, 4096)) == 256);
  BOOST_TEST(attention_documents({0, 100}, 200, 100).longest == 128);
}

BOOST_AUTO_TEST_CASE(the_table_says_where_documents_lie) {
  const auto documents = attention_documents({0, 3, 10}, 12, 10);
  const auto table = attention_document_table(documents, {4, 2, 8});
  const int64_t row_elements[] = {64, 32, 4, 16}, first_rows[] = {0, 3, 10, 12, 12};
  for (size_t section = 0; section < 4; ++section)
    for (size_t i = 0; i < 5; ++i)
      BOOST_TEST(table[section * 18 + i] == row_elements[section] * first_rows[i]);
  const auto* lengths = reinterpret_cast<const int32_t*>(table.data() + 4 * 18);
  BOOST_TEST(lengths[0] == 3);
  BOOST_TEST(lengths[1] == 7);
  BOOST_TEST(lengths[2] == 2);
  for (size_t i = 3; i < 16; ++i) BOOST_TEST(lengths[i] == 0);
}

BOOST_AUTO_TEST_CASE(what_is_fused) {
  BOOST_TEST(attention_is_fused(at::kBFloat16, 64, 2));
  BOOST_TEST(attention_is_fused(at::kBFloat16, 128, 8192));
  BOOST_TEST(!attention_is_fused(at::kBFloat16, 96, 8192));
  BOOST_TEST(!attention_is_fused(at::kBFloat16, 64, 1));
  BOOST_TEST(!attention_is_fused(at::kFloat, 64, 8192));
}

BOOST_AUTO_TEST_CASE(wrong_arguments_are_refused) {
  const Case c{2, 8, {4, 2, 64}, {}};
  const at::Tensor qkv = random_qkv(c, dtype_under_test(), 80),
                   d_out = random_gradient(c, dtype_under_test(), 81);
  const auto forward = attention_forward_op(qkv, call_of(c));
  BOOST_CHECK_THROW(attention_forward_op(qkv, {2, 9, c.heads, nullptr}), Error);
  BOOST_CHECK_THROW(attention_forward_op(qkv, {2, 8, {4, 3, 64}, nullptr}), Error);
  BOOST_CHECK_THROW(attention_forward_op(qkv, {2, 8, {6, 1, 64}, call_of({1, 8, c.heads, {0, 4}}).documents}),
                    Error);
  BOOST_CHECK_THROW(attention_forward_op(qkv.narrow(2, 0, 32), {2, 8, {4, 2, 32}, nullptr}), Error);
  BOOST_CHECK_THROW(attention_backward_op(d_out.narrow(0, 0, 8), qkv, forward, call_of(c)), Error);
  for (const std::vector<int32_t>& starts :
       {std::vector<int32_t>{}, {1, 2}, {0, 4, 4}, {0, 16}, {0, 5, 3}, {0, 12}})
    BOOST_CHECK_THROW(attention_documents(starts, 16, 8), Error);
}

#ifdef HEARTH_CUDA
// A captured pass, replayed on other values in the same memory.
BOOST_AUTO_TEST_CASE(passes_can_be_captured) {
  if (device_under_test().is_cpu()) return;
  for (const std::vector<int32_t>& starts : {std::vector<int32_t>{}, {0, 70, 200, 210}}) {
    const Case c{2, 200, {9, 3, 64}, starts};
    const AttentionCall call = call_of(c);
    at::Tensor qkv = random_qkv(c, at::kBFloat16, 82);
    const at::Tensor d_out = random_gradient(c, at::kBFloat16, 83), values = random_qkv(c, at::kBFloat16, 84);
    const c10::cuda::CUDAStreamGuard on_a_stream(c10::cuda::getStreamFromPool());
    const auto pass = [&] {
      AttentionResult forward = attention_forward_op(qkv, call);
      at::Tensor d_qkv = attention_backward_op(d_out, qkv, forward, call);
      return std::pair{forward.out_NE, d_qkv};
    };
    pass();  // makes the plans of this stream
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const auto [out, d_qkv] = pass();
    graph.capture_end();
    qkv.copy_(values);
    graph.replay();
    const auto [want, d_want] = pass();
    c10::cuda::getCurrentCUDAStream().synchronize();
    BOOST_TEST(bit_equal(out, want));
    BOOST_TEST(bit_equal(d_qkv.narrow(1, 9, 6), d_want.narrow(1, 9, 6)));
  }
}
#endif

}  // namespace
}  // namespace hearth
