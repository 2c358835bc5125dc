// What the kernel tests share: the device under test, counter-based random tensors, moves between tensors and
// the vectors that references take, and central differences. A program runs on the CPU; with the argument `--
// cuda` it runs the same cases on the GPU, and exits with 77 (skipped) where there is none.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <iostream>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "kernels/op_support.h"
#include "kernels/reference/scalar.h"
#include "tests/compare.h"

namespace hearth::testing {

inline at::Device device_under_test() {
  const auto& suite = boost::unit_test::framework::master_test_suite();
  for (int i = 1; i < suite.argc; ++i)
    if (std::string_view(suite.argv[i]) == "cuda") return at::Device(at::kCUDA, 0);
  return at::Device(at::kCPU);
}

struct SkipWithoutDevice {
  SkipWithoutDevice() {
    if (device_under_test().is_cpu() || at::detail::getCUDAHooks().deviceCount() > 0) return;
    std::cout << "skipped: no CUDA device on this machine" << std::endl;
    std::exit(77);
  }
};
BOOST_TEST_GLOBAL_FIXTURE(SkipWithoutDevice);

// Standard normal values times `scale`, rounded to `dtype`, on the device under test.
inline at::Tensor random_tensor(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed,
                                double scale = 1.0) {
  at::Tensor out = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  float* data = out.data_ptr<float>();
  const CounterRng rng(seed, uint64_t{1});
  for (int64_t i = 0; i < out.numel(); ++i)
    data[i] = static_cast<float>(scale * rng.normal(static_cast<uint64_t>(i)));
  return out.to(dtype).to(device_under_test());
}

// Uniform integers in [0, limit) on the device under test.
inline at::Tensor random_ids(int64_t count, int64_t limit, at::ScalarType dtype, uint64_t seed) {
  at::Tensor out = at::empty({count}, at::TensorOptions().dtype(at::kLong));
  int64_t* data = out.data_ptr<int64_t>();
  const CounterRng rng(seed, uint64_t{2});
  for (int64_t i = 0; i < count; ++i)
    data[i] = static_cast<int64_t>(rng.bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(limit));
  return out.to(dtype).to(device_under_test());
}

template <class T>
std::vector<T> values(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.cpu().to(at::kDouble).contiguous();
  const double* data = wide.const_data_ptr<double>();
  std::vector<T> out;
  out.reserve(static_cast<size_t>(wide.numel()));
  for (int64_t i = 0; i < wide.numel(); ++i) out.push_back(static_cast<T>(data[i]));
  return out;
}

// fp64 CPU tensor of `shape` holding `source`.
template <class T>
at::Tensor tensor_of(const std::vector<T>& source, at::IntArrayRef shape) {
  at::Tensor out = at::empty(shape, at::TensorOptions().dtype(at::kDouble));
  double* data = out.data_ptr<double>();
  for (size_t i = 0; i < source.size(); ++i) data[i] = static_cast<double>(source[i]);
  return out;
}

// 2 x the error of plain arithmetic in the tensor's own precision, plus one rounding of the largest result (a
// small tensor's plain error can be zero by luck).
template <class T>
double tolerance(const std::vector<T>& plain, const std::vector<double>& want) {
  constexpr double kHalfUlp = std::is_same_v<T, kernels::reference::Bf16> ? 0x1p-9 : 0x1p-24;
  double error = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error = std::fmax(error, std::abs(static_cast<double>(plain[i]) - want[i]));
    largest = std::fmax(largest, std::abs(want[i]));
  }
  return 2 * error + kHalfUlp * largest;
}

// Checks `got` against the fp64 reference with the tolerance that the plain low-precision reference earns.
// `extra` is for results that cancel: what rounding of the terms costs.
template <class T>
void check_close(std::string_view what, const at::Tensor& got, const std::vector<T>& plain,
                 const std::vector<double>& want, double extra = 0) {
  const Diff diff = compare(got, tensor_of(want, got.sizes()), tolerance(plain, want) + extra);
  BOOST_TEST(diff.ok(), what << ": " << diff);
}

inline bool bit_equal(const at::Tensor& a, const at::Tensor& b) {
  return a.cpu().equal(b.cpu());
}

// Runs `body` for fp32 and bf16: body.template operator()<Scalar>(dtype).
template <class Body>
void for_each_dtype(Body&& body) {
  body.template operator()<float>(at::kFloat);
  body.template operator()<kernels::reference::Bf16>(at::kBFloat16);
}

// Checks analytic gradients against central differences of `loss` in fp64. The step 1e-5 leaves an error near
// 1e-10 times the third derivative, and cancellation near 1e-11 of the loss.
template <class Loss>
void check_gradient(std::string_view what, Loss&& loss, std::vector<double> x,
                    const std::vector<double>& analytic) {
  constexpr double kStep = 1e-5, kTolerance = 1e-7;
  double largest = 1;
  for (const double a : analytic) largest = std::fmax(largest, std::abs(a));
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + kStep;
    const double above = loss(x);
    x[i] = kept - kStep;
    const double below = loss(x);
    x[i] = kept;
    const double error = std::abs((above - below) / (2 * kStep) - analytic[i]);
    BOOST_TEST(error <= kTolerance * largest, what << "[" << i << "]: off by " << error);
  }
}

// Sum of weights times values: turns any output into a loss whose gradient with respect to it is `weights`.
template <class T>
double weighted_sum(const std::vector<T>& weights, const std::vector<T>& outputs) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * outputs[i];
  return sum;
}

inline std::vector<double> random_values(int64_t count, uint64_t seed) {
  std::vector<double> out;
  const CounterRng rng(seed, uint64_t{3});
  for (int64_t i = 0; i < count; ++i) out.push_back(rng.normal(static_cast<uint64_t>(i)));
  return out;
}

}  // namespace hearth::testing
