#include "kernels/bench/bench_table.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/quantile.h"
#include "kernels/launch_check.h"

namespace hearth::kernels {
namespace {

constexpr int kRepeats = 30, kWarmup = 5;
constexpr int64_t kRotatedBytes = int64_t{400} << 20;  // several times the 50 to 60 MB of L2
constexpr double kLargeCopyBytes = 1 << 30;

double median_us(const Body& body, int64_t sets) {
  std::vector<cudaEvent_t> events(2 * kRepeats);
  for (cudaEvent_t& event : events) HEARTH_CUDA_CHECK(cudaEventCreate(&event));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  for (int i = 0; i < kWarmup; ++i) body(i % sets);
  for (size_t i = 0; i < kRepeats; ++i) {
    HEARTH_CUDA_CHECK(cudaEventRecord(events[2 * i], stream));
    body(static_cast<int64_t>(i) % sets);
    HEARTH_CUDA_CHECK(cudaEventRecord(events[2 * i + 1], stream));
  }
  HEARTH_CUDA_CHECK(cudaStreamSynchronize(stream));
  std::vector<double> times;
  for (size_t i = 0; i < kRepeats; ++i) {
    float ms = 0;
    HEARTH_CUDA_CHECK(cudaEventElapsedTime(&ms, events[2 * i], events[2 * i + 1]));
    times.push_back(1e3 * static_cast<double>(ms));
  }
  for (const cudaEvent_t event : events) HEARTH_CUDA_CHECK(cudaEventDestroy(event));
  return quantile(std::move(times), 0.5);
}

// GB/s of LibTorch's copy where half of `bytes` is read and half written.
double copy_gbps(double bytes) {
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const auto elements = static_cast<int64_t>(bytes / 4);
  const int64_t sets = sets_for(bytes);
  const auto from = Table::many(sets, [&] { return at::randn({elements}, bf16); });
  auto to = Table::many(sets, [&] { return at::empty({elements}, bf16); });
  const double us =
      median_us([&](int64_t i) { to[static_cast<size_t>(i)].copy_(from[static_cast<size_t>(i)]); }, sets);
  return 4.0 * static_cast<double>(elements) / us * 1e-3;
}

}  // namespace

int64_t sets_for(double bytes) {
  return std::clamp<int64_t>(kRotatedBytes / static_cast<int64_t>(bytes) + 1, 2, 16);
}

Table::Table(std::string filter) : filter_(std::move(filter)), copy_gbps_(copy_gbps(kLargeCopyBytes)) {
  cudaDeviceProp device{};
  HEARTH_CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  fmt::print("{}: copy {:.0f} GB/s (read + written)\n", device.name, copy_gbps_);
  fmt::print("{:<24}{:<26}{:>11}{:>13}{:>8}{:>10}{:>11}{:>8}\n", "op", "shape", "median us", "rate",
             "of copy", "of equal", "ATen us", "speedup");
}

void Table::memory_row(const std::string& op, const std::string& shape, double bytes, const Body& ours,
                       const Body& aten) {
  const int64_t sets = sets_for(bytes);
  const double us = median_us(ours, sets), aten_us = median_us(aten, sets), gbps = bytes / us * 1e-3;
  fmt::print("{:<24}{:<26}{:>11.1f}{:>8.0f} GB/s{:>7.0f}%{:>9.0f}%{:>11.1f}{:>8.2f}\n", op, shape, us, gbps,
             100 * gbps / copy_gbps_, 100 * gbps / copy_gbps(std::min(bytes, kLargeCopyBytes)), aten_us,
             aten_us / us);
}

void Table::compute_row(const std::string& op, const std::string& shape, double flops, double bytes,
                        const Body& ours, const Body& aten) {
  const int64_t sets = sets_for(bytes);
  const double us = median_us(ours, sets), aten_us = median_us(aten, sets);
  fmt::print("{:<24}{:<26}{:>11.1f}{:>6.0f} TFLOP/s{:>8}{:>10}{:>11.1f}{:>8.2f}\n", op, shape, us,
             flops / us * 1e-6, "-", "-", aten_us, aten_us / us);
}

}  // namespace hearth::kernels
