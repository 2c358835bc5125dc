// Device time of the kernels that a piece of work launches, by kind of work: for `hearth bench train`.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainer/trace_overlap.h"

namespace hearth {

// What a kernel's name says it does: "gemm", "attention", "norm", "rope", "swiglu", "loss", "embedding",
// "optimizer", "communication", "copy", or "other". Pure, thread-safe.
std::string_view kind_of_kernel(std::string_view kernel);

// "AllGather" of "ncclDevKernel_AllGather_RING_LL(...)"; "other" where NCCL did not name it. Pure,
// thread-safe.
std::string communication_call(std::string_view kernel);

struct KernelSpan {
  std::string name;
  int64_t stream = 0, begin_ns = 0, end_ns = 0;
};

// Of one piece of work.
struct KernelTime {
  // Seconds, the most first; of a kernel that was set up before the one in front of it ended, with that wait.
  std::vector<std::pair<std::string, double>> by_kind, by_name;
  double idle = 0;  // seconds between the first and the last kernel in which none ran
  // By NCCL's names, "copy engines", and "all"; empty where nothing is exchanged. How much of it compute
  // covers.
  std::vector<KindOverlap> communication;
  double total() const;
};

// Of `kernels`, which a piece of work launched `repeats` times in a row: the mean of all times but the first,
// which followed a pause in which the card cooled. Pure, thread-safe.
KernelTime summarize_kernels(std::vector<KernelSpan> kernels, int repeats);

constexpr int kTracedRepeats = 4;

// Runs `work` kTracedRepeats times under LibTorch's profiler (kineto, through CUPTI); ends with an idle
// device. On the CPU it runs once and there are no kernels: all is empty. One at a time in a process, and not
// beside a StepTracer.
KernelTime kernel_time(at::Device device, const std::function<void()>& work);

}  // namespace hearth
