// Attention of a shared sequence against plain attention over the whole sequence in fp64. Every rank makes
// the same whole sequences, runs its own rows and compares them with its rows of the answer. On the CPU over
// MPI; with `-- cuda` over NCCL in fp32 and bf16, where ranks may share a device ("skipped: no CUDA device"
// without one).
//
// Tolerances, for the largest error and for the root mean square (which finds small errors in many places).
// The plain computation in the same dtype on one rank has an error, measured against fp64, to which comes one
// rounding u of what FlashAttention-2's backward subtracts and plain softmax does not: dS = p (dout.v -
// dout.out), where both terms are of the size of dout.v even if their difference is 0 (a document of one
// token). Each rank that contributes rounds once more: (size + 1) x the sum of both. In fp64 nothing better
// exists to measure with: fp32's error x 2^-29, the ratio of the roundings, and one part more for the
// reference itself.
#include "parallel/context/context_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <boost/test/unit_test.hpp>
#include <iostream>
#include <limits>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/binding.h"
#include "parallel/device_info.h"
#include "tests/compare.h"
#include "tests/parallel/mpi_fixture.h"

using namespace hearth;
using at::Tensor;

namespace {

bool on_cuda() {
  const auto& suite = boost::unit_test::framework::master_test_suite();
  for (int i = 1; i < suite.argc; ++i)
    if (std::string_view(suite.argv[i]) == "cuda") return true;
  return false;
}

struct SkipWithoutDevice {
  SkipWithoutDevice() {
    if (!on_cuda() || !cuda_devices().devices.empty()) return;
    std::cout << "skipped: no CUDA device" << std::endl;
    std::exit(77);
  }
};
BOOST_TEST_GLOBAL_FIXTURE(SkipWithoutDevice);

std::optional<int> my_device() {
  if (!on_cuda()) return std::nullopt;
  const auto& control = *test::job().control;
  const auto count = static_cast<int>(cuda_devices().devices.size());
  if (const auto id = nccl_host_id(control, count)) ::setenv("NCCL_HOSTID", id->c_str(), 1);
  return device_of(control.local_rank(), count);
}

Comm& comm() {
  static Comm* instance =  // lives as long as the process, like the job
      make_comm(test::job(),
                {.group = "cp", .ranks = test::all_ranks(), .cuda_device = my_device(), .timeout_s = 60})
          .release();
  return *instance;
}

at::Device device() {
  static const at::Device instance =
      on_cuda() ? at::Device(at::kCUDA, static_cast<at::DeviceIndex>(*my_device())) : at::Device(at::kCPU);
  return instance;
}

std::vector<at::ScalarType> dtypes() {
  if (on_cuda()) return {at::kFloat, at::kBFloat16};
  return {at::kFloat, at::kDouble};
}

using Starts = std::vector<std::vector<int32_t>>;

struct Problem {
  int64_t sequence = 0, heads = 4, kv_heads = 2, width = 16;
  Starts starts;
  context::BlockKernels kernels = context::BlockKernels::Flash;
  int64_t batch() const { return static_cast<int64_t>(starts.size()); }
  int64_t rows() const { return batch() * sequence; }
};

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  return out << p.batch() << " x " << p.sequence << " tokens, " << p.heads << "/" << p.kv_heads
             << " heads of " << p.width << ", " << comm().size() << " ranks";
}

// Attention of the shared sequence, forward and backward; or all rows of the plain one.
struct Answer {
  Tensor out, dqkv;
};

Tensor random_rows(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed) {
  Tensor out = at::empty(shape, at::kDouble);
  const CounterRng rng(seed, uint64_t{9});
  for (int64_t i = 0; i < out.numel(); ++i) out.data_ptr<double>()[i] = rng.normal(static_cast<uint64_t>(i));
  return out.to(dtype);
}

Tensor qkv_of(const Problem& p, at::ScalarType dtype) {
  return random_rows({p.rows(), p.heads + 2 * p.kv_heads, p.width}, dtype, 17);
}
Tensor dout_of(const Problem& p, at::ScalarType dtype) {
  return random_rows({p.rows(), p.heads * p.width}, dtype, 18);
}

// [B, 1, S, S], true where the query may not see the key.
Tensor forbidden(const Problem& p) {
  Tensor document = at::empty({p.batch(), p.sequence}, at::kLong);
  for (int64_t b = 0; b < p.batch(); ++b) {
    const auto& starts = p.starts[static_cast<size_t>(b)];
    for (int64_t s = 0; s < p.sequence; ++s)
      document[b][s] = static_cast<int64_t>(std::count_if(
          starts.begin(), starts.end(), [&](int32_t start) { return start > 0 && start <= s; }));
  }
  const Tensor row = at::arange(p.sequence, at::kLong);
  return document.unsqueeze(1)
      .ne(document.unsqueeze(2))
      .logical_or(row.unsqueeze(0).gt(row.unsqueeze(1)))
      .unsqueeze(1);
}

Answer plain(const Problem& p, const Tensor& qkv_in, const Tensor& dout, at::ScalarType dtype) {
  const Tensor qkv = qkv_in.detach().to(dtype).clone().requires_grad_();
  const auto parts = qkv.split_with_sizes({p.heads, p.kv_heads, p.kv_heads}, 1);
  const auto heads_first = [&](const Tensor& x) {
    return x.unflatten(0, {p.batch(), p.sequence}).transpose(1, 2).repeat_interleave(p.heads / x.size(1), 1);
  };
  const Tensor scores = at::matmul(heads_first(parts[0]), heads_first(parts[1]).transpose(2, 3)) *
                        (1.0 / std::sqrt(static_cast<double>(p.width)));
  const Tensor weights =
      scores.masked_fill(forbidden(p), -std::numeric_limits<double>::infinity()).softmax(-1);
  const Tensor out = at::matmul(weights, heads_first(parts[2])).transpose(1, 2).reshape({p.rows(), -1});
  out.backward(dout.to(dtype));
  return {out.detach(), qkv.grad()};
}

ContextLayout layout_of(const Problem& p, at::ScalarType dtype) {
  return make_context_layout(p.starts, p.sequence, comm().size(), comm().rank(), device(), dtype);
}

// Rows of the B whole sequences that this rank holds, in its order.
Tensor my_rows(const Problem& p) {
  std::vector<int64_t> rows;
  for (int64_t b = 0; b < p.batch(); ++b)
    for (const int64_t position : context_positions(p.sequence, comm().size(), comm().rank()))
      rows.push_back(b * p.sequence + position);
  return at::tensor(rows, at::kLong);
}

Answer shared(const Problem& p, const Tensor& qkv, const Tensor& dout, ContextMethod method) {
  const Tensor rows = my_rows(p);
  const Tensor mine = qkv.index_select(0, rows).to(device()).requires_grad_();
  Tensor out;
  {
    const auto layout = layout_of(p, qkv.scalar_type());  // gone before the backward
    out = context_attention(mine, p.heads, p.kv_heads, layout, method, comm(), p.kernels);
  }
  out.backward(dout.index_select(0, rows).to(device()));
  return {out.detach().cpu(), mine.grad().cpu()};
}

// out, dq, dk, dv.
std::array<Tensor, 4> tensors_of(const Answer& a, const Problem& p) {
  const auto parts = a.dqkv.split_with_sizes({p.heads, p.kv_heads, p.kv_heads}, 1);
  return {a.out, parts[0], parts[1], parts[2]};
}

bool fits(const Problem& p, ContextMethod method) {
  return method == ContextMethod::Ring || all_to_all_fits(p.heads, p.kv_heads, comm().size());
}

constexpr ContextMethod kMethods[] = {ContextMethod::Ring, ContextMethod::AllToAll};
constexpr const char* kNames[] = {"out", "dq", "dk", "dv"};

const char* name(ContextMethod method) {
  return method == ContextMethod::Ring ? "ring" : "all_to_all";
}

double rms(const Tensor& x) {
  return x.numel() == 0 ? 0.0 : std::sqrt(x.to(at::kDouble).square().mean().item<double>());
}

struct Tolerance {
  double largest = 0, rms = 0;
};

// Of out, dq, dk, dv: see the head of the file.
std::array<Tolerance, 4> tolerances(const Problem& p, const Tensor& qkv, const Tensor& dout,
                                    const Answer& want) {
  const bool fp64 = qkv.scalar_type() == at::kDouble;
  const auto low = fp64 ? at::kFloat : qkv.scalar_type();
  // Of a stored value, and of a sum of W products in fp32 (random errors of W partial sums).
  const double rounding =
      (low == at::kFloat ? 0x1.0p-24 : 0x1.0p-8) + 0x1.0p-24 * std::sqrt(static_cast<double>(p.width) / 3);
  const double factor = fp64 ? (comm().size() + 2) * 0x1.0p-29 : comm().size() + 1;
  const auto reference = fp64 ? plain(p, qkv.to(low), dout.to(low), at::kDouble) : want;
  const auto got = tensors_of(plain(p, qkv, dout, low), p), exact = tensors_of(reference, p);
  const auto inputs = tensors_of({dout, qkv.to(at::kDouble)}, p);
  const auto dout_rows = dout.to(at::kDouble).unflatten(1, {p.heads, p.width});
  const double scale = 1.0 / std::sqrt(static_cast<double>(p.width));
  const auto longest = [](const Tensor& x) { return x.norm(2, -1).max().item<double>(); };
  const auto largest = [](const Tensor& x) { return x.abs().max().item<double>(); };
  const double ds_largest = scale * longest(dout_rows) * longest(inputs[3]),
               ds_rms = rms(dout_rows) * rms(inputs[3]);
  const double sizes[] = {largest(inputs[3]), ds_largest * largest(inputs[2]),
                          ds_largest * largest(inputs[1]), largest(dout_rows)};
  const double rms_sizes[] = {rms(inputs[3]), ds_rms * rms(inputs[2]), ds_rms * rms(inputs[1]),
                              rms(dout_rows)};
  std::array<Tolerance, 4> tolerance{};
  for (size_t i = 0; i < 4; ++i) {
    const double error = testing::compare(got[i], exact[i], 0).max_abs;
    tolerance[i].largest = factor * (error + rounding * sizes[i]);
    tolerance[i].rms = factor * (rms(got[i].to(at::kDouble) - exact[i]) + rounding * rms_sizes[i]);
  }
  return tolerance;
}

void check_problem(const Problem& p) {
  for (const auto dtype : dtypes()) {
    const Tensor qkv = qkv_of(p, dtype), dout = dout_of(p, dtype), rows = my_rows(p);
    const Answer whole = plain(p, qkv, dout, at::kDouble);
    const auto tolerance = tolerances(p, qkv, dout, whole);
    const Answer want{whole.out.index_select(0, rows), whole.dqkv.index_select(0, rows)};
    for (const auto method : kMethods) {
      if (!fits(p, method)) continue;
      const auto got_all = tensors_of(shared(p, qkv, dout, method), p), want_all = tensors_of(want, p);
      for (size_t i = 0; i < 4; ++i) {
        BOOST_TEST(got_all[i].scalar_type() == dtype);
        const auto diff = testing::compare(got_all[i], want_all[i], tolerance[i].largest);
        const double rms_error = rms(got_all[i].to(at::kDouble) - want_all[i]);
        BOOST_TEST_CONTEXT(p << ", " << name(method) << ", " << at::toString(dtype) << ", " << kNames[i]) {
          BOOST_TEST(diff.ok(), "tolerance " << tolerance[i].largest << ": " << diff);
          BOOST_TEST(rms_error <= tolerance[i].rms);
        }
      }
    }
  }
}

// Borders by kind, for chunks of c rows: none, inside chunks, at chunk edges, one-token documents, nothing
// but those.
Starts borders(int64_t kind, int64_t c, int64_t sequence) {
  const auto at = [](int64_t position) { return static_cast<int32_t>(position); };
  switch (kind) {
    case 0:
      return {{0}};
    case 1:
      return {{at(c / 2), at(c + 3), at(sequence - c / 3)}};
    case 2:
      return {{0, at(c), at(sequence / 2), at(sequence - c)}};
    case 3:
      return {{0, 1, 2, at(c - 1), at(c), at(c + 1), at(sequence - 1)}};
    default: {
      Starts all(1);
      for (int64_t s = 0; s < sequence; ++s) all[0].push_back(at(s));
      return all;
    }
  }
}

Starts mixed_borders(int64_t c, int64_t sequence) {
  return {borders(1, c, sequence)[0], borders(0, c, sequence)[0], borders(3, c, sequence)[0]};
}

constexpr int64_t kChunk = 12;
int64_t sequence_of(int64_t chunk) {
  return 2 * chunk * comm().size();
}

bool same(const Tensor& a, const Tensor& b) {
  return at::equal(a, b);
}

}  // namespace

BOOST_AUTO_TEST_CASE(equals_attention_over_the_whole_sequence) {
  const int64_t sequence = sequence_of(kChunk);
  for (const int64_t kv_heads : {4, 2, 1}) {
    for (int64_t kind = 0; kind < 5; ++kind)
      check_problem({.sequence = sequence, .kv_heads = kv_heads, .starts = borders(kind, kChunk, sequence)});
    check_problem({.sequence = sequence, .kv_heads = kv_heads, .starts = mixed_borders(kChunk, sequence)});
    check_problem({.sequence = sequence, .kv_heads = kv_heads, .starts = Starts(3, {0})});
  }
}

// Chunks of one row; chunks of several tiles of the kernels, and a width that is no power of two.
BOOST_AUTO_TEST_CASE(equals_attention_over_sequences_of_other_sizes) {
  const int64_t tiny = sequence_of(1);
  check_problem({.sequence = tiny, .starts = {{0}, {1}, borders(4, 1, tiny)[0]}});
  const int64_t sequence = sequence_of(150);
  check_problem({.sequence = sequence, .width = 40, .starts = {{0}}});
  check_problem({.sequence = sequence, .width = 40, .starts = borders(1, 150, sequence)});
}

// cuDNN's blocks, at sizes that are no multiples of its tiles; with documents FlashAttention-2 runs.
BOOST_AUTO_TEST_CASE(cudnn_equals_attention_over_the_whole_sequence) {
  if (!on_cuda()) return;
  for (const int64_t chunk : {2, 64, 150})
    for (const int64_t width : {64, 128})
      for (const int64_t kv_heads : {4, 2, 1}) {
        const int64_t sequence = sequence_of(chunk);
        Problem p{.sequence = sequence, .kv_heads = kv_heads, .width = width, .starts = Starts(2, {0})};
        p.kernels = context::BlockKernels::Cudnn;
        check_problem(p);
        p.starts = {{0}};
        check_problem(p);
        p.starts = {{0}, {static_cast<int32_t>(chunk + 1)}};
        check_problem(p);
      }
}

// Documents lie in other ranks' chunks too: nothing of another document may reach a row, not even as 0 x
// value.
BOOST_AUTO_TEST_CASE(a_document_does_not_touch_the_others) {
  const int64_t sequence = sequence_of(kChunk);
  const auto begin = static_cast<int32_t>(kChunk / 2), end = static_cast<int32_t>(sequence - kChunk / 3);
  const Problem p{.sequence = sequence, .starts = {{0, begin, end}, {0}}};
  const Tensor rows = my_rows(p), outside = rows.lt(begin).logical_or(rows.ge(end));
  for (const auto dtype : dtypes())
    for (const auto method : kMethods) {
      if (!fits(p, method)) continue;
      const Tensor qkv = qkv_of(p, dtype), dout = dout_of(p, dtype);
      Tensor other = qkv.clone();
      other.narrow(0, begin, end - begin).fill_(std::numeric_limits<double>::quiet_NaN());
      const Answer a = shared(p, qkv, dout, method), b = shared(p, other, dout, method);
      const auto keep = [&](const Tensor& x) { return x.index({outside}); };
      BOOST_TEST(same(keep(a.out), keep(b.out)), name(method));
      // FlashAttention-2 adds dq with atomics, in no fixed order.
      if (!on_cuda()) BOOST_TEST(same(keep(a.dqkv), keep(b.dqkv)), name(method));
      if (on_cuda()) BOOST_TEST(!keep(b.dqkv).isnan().any().item<bool>(), name(method));
      BOOST_TEST(b.out.index({outside.logical_not()}).isnan().all().item<bool>(), name(method));
    }
}

BOOST_AUTO_TEST_CASE(repeats_bit_for_bit) {
  const int64_t sequence = sequence_of(kChunk);
  const Problem p{.sequence = sequence, .starts = mixed_borders(kChunk, sequence)};
  for (const auto dtype : dtypes())
    for (const auto method : kMethods) {
      if (!fits(p, method)) continue;
      const Tensor qkv = qkv_of(p, dtype), dout = dout_of(p, dtype);
      const Answer a = shared(p, qkv, dout, method), b = shared(p, qkv, dout, method);
      BOOST_TEST(same(a.out, b.out), name(method));
      if (!on_cuda()) BOOST_TEST(same(a.dqkv, b.dqkv), name(method));  // on CUDA: atomics, as above
      const at::NoGradGuard no_grad;
      const Tensor mine = qkv.index_select(0, my_rows(p)).to(device());
      const Tensor out = context_attention(mine, p.heads, p.kv_heads, layout_of(p, dtype), method, comm());
      BOOST_TEST(same(a.out, out.cpu()), name(method) << " without gradient");
    }
}

BOOST_AUTO_TEST_CASE(what_does_not_fit_is_refused) {
  const int size = comm().size();
  const Problem p{.sequence = sequence_of(2), .heads = 7, .kv_heads = 7, .starts = {{0}}};
  const Tensor mine = qkv_of(p, at::kFloat).index_select(0, my_rows(p)).to(device());
  const auto layout = layout_of(p, at::kFloat);
  const auto kind_is = [](ErrorKind kind) { return [kind](const Error& e) { return e.kind() == kind; }; };
  if (size > 1)
    BOOST_CHECK_EXCEPTION(context_attention(mine, 7, 7, layout, ContextMethod::AllToAll, comm()), Error,
                          kind_is(ErrorKind::Config));
  BOOST_CHECK_EXCEPTION(context_attention(mine, 6, 7, layout, ContextMethod::Ring, comm()), Error,
                        kind_is(ErrorKind::Usage));
  BOOST_CHECK_EXCEPTION(context_attention(mine.narrow(0, 0, 1), 7, 7, layout, ContextMethod::Ring, comm()),
                        Error, kind_is(ErrorKind::Usage));
  const auto other =
      make_context_layout(p.starts, p.sequence, size, (comm().rank() + 1) % size, device(), at::kFloat);
  if (size > 1)
    BOOST_CHECK_EXCEPTION(context_attention(mine, 7, 7, other, ContextMethod::Ring, comm()), Error,
                          kind_is(ErrorKind::Usage));
}
