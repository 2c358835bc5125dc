// Device time of the kernels that a piece of work launches, by kind of work: for `hearth bench train`.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hearth {

// What a kernel's name says it does: "gemm", "attention", "norm", "rope", "swiglu", "loss", "embedding",
// "optimizer", "communication", "copy", or "other". Pure, thread-safe.
std::string_view kind_of_kernel(std::string_view kernel);

struct KernelTime {
  std::vector<std::pair<std::string, double>> by_kind, by_name;  // seconds, the most first
  double idle = 0;  // seconds between the first and the last kernel in which none ran
  double total() const;
};

constexpr int kTracedRepeats = 4;

// Of one `work`: the mean of kTracedRepeats but the first, back to back under LibTorch's profiler (kineto,
// through CUPTI); ends with an idle device. On the CPU it runs once and there are no kernels: all is empty.
// One at a time in a process, and not beside a StepTracer.
KernelTime kernel_time(at::Device device, const std::function<void()>& work);

}  // namespace hearth
