#include "trainer/bench/kernel_time.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "trainer/device.h"

namespace hearth {
namespace {

namespace profiler = torch::autograd::profiler;

struct Rule {
  std::string_view part, kind;
};
// The first rule whose part is in the name wins. Our own kernels come first: their names are ours to know.
constexpr std::array kRules{Rule{"rms_norm", "norm"},
                            Rule{"add_partial_rows", "norm"},
                            Rule{"rope", "rope"},
                            Rule{"swiglu", "swiglu"},
                            Rule{"cross_entropy", "loss"},
                            Rule{"vocab_parallel", "loss"},
                            Rule{"distillation", "loss"},
                            Rule{"embedding", "embedding"},
                            Rule{"Radix", "embedding"},
                            Rule{"adamw", "optimizer"},
                            Rule{"sum_of_squares", "optimizer"},
                            Rule{"sum_partials", "optimizer"},
                            Rule{"flash", "attention"},
                            Rule{"fmha", "attention"},
                            Rule{"sdpa", "attention"},
                            Rule{"cudnn", "attention"},
                            Rule{"nccl", "communication"},
                            Rule{"nvjet", "gemm"},
                            Rule{"gemm", "gemm"},
                            Rule{"splitK", "gemm"},
                            Rule{"cutlass", "gemm"},
                            Rule{"Memcpy", "copy"},
                            Rule{"Memset", "copy"},
                            Rule{"copy", "copy"},
                            Rule{"Cat", "copy"},
                            Rule{"FillFunctor", "copy"}};

std::vector<std::pair<std::string, double>> most_first(const std::map<std::string, double>& seconds) {
  std::vector<std::pair<std::string, double>> sorted(seconds.begin(), seconds.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return sorted;
}

// Without template arguments and parameters: "hearth::kernels::rms_norm_forward_kernel".
std::string short_name(std::string name) {
  for (const std::string_view noise : {"void ", "(anonymous namespace)::"})
    for (size_t at = name.find(noise); at != std::string::npos; at = name.find(noise))
      name.erase(at, noise.size());
  return name.substr(0, std::min(name.find('<'), name.find('(')));
}

}  // namespace

std::string_view kind_of_kernel(std::string_view kernel) {
  const auto rule = std::find_if(kRules.begin(), kRules.end(), [&](const Rule& r) {
    return kernel.find(r.part) != std::string_view::npos;
  });
  return rule == kRules.end() ? "other" : rule->kind;
}

double KernelTime::total() const {
  double sum = 0;
  for (const auto& [kind, seconds] : by_kind) sum += seconds;
  return sum;
}

std::string communication_call(std::string_view kernel) {
  constexpr std::string_view kPrefix = "ncclDevKernel_";
  const size_t at = kernel.find(kPrefix);
  if (at == std::string_view::npos) return "other";
  const std::string_view call = kernel.substr(at + kPrefix.size());
  return std::string(call.substr(0, call.find_first_of("_(<")));
}

KernelTime summarize_kernels(std::vector<KernelSpan> kernels, int repeats) {
  std::stable_sort(kernels.begin(), kernels.end(),
                   [](const KernelSpan& a, const KernelSpan& b) { return a.begin_ns < b.begin_ns; });
  kernels.erase(kernels.begin(),
                kernels.begin() + static_cast<std::ptrdiff_t>(kernels.size() / static_cast<size_t>(repeats)));
  const int counted = repeats - 1;
  const auto seconds = [&](int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9 / counted; };
  // Copies in a stream of NCCL's are its own: its all-gathers by copy engines.
  constexpr std::string_view kCommunication = "communication";
  std::set<int64_t> exchanging;
  for (const KernelSpan& kernel : kernels)
    if (kind_of_kernel(kernel.name) == kCommunication) exchanging.insert(kernel.stream);
  const auto is_copy_of_nccl = [&](const KernelSpan& kernel) {
    return kernel.name.rfind("Memcpy", 0) == 0 && exchanging.count(kernel.stream) != 0;
  };
  KernelTime time;
  std::map<std::string, double> by_kind, by_name;
  RankTrace trace{.steps = counted};
  int64_t busy_until = kernels.empty() ? 0 : kernels.front().begin_ns;
  for (const KernelSpan& kernel : kernels) {
    const bool copies = is_copy_of_nccl(kernel);
    const std::string_view kind = copies ? kCommunication : kind_of_kernel(kernel.name);
    by_kind[std::string(kind)] += seconds(kernel.end_ns - kernel.begin_ns);
    by_name[short_name(kernel.name)] += seconds(kernel.end_ns - kernel.begin_ns);
    if (kernel.begin_ns > busy_until) time.idle += seconds(kernel.begin_ns - busy_until);
    busy_until = std::max(busy_until, kernel.end_ns);
    const bool communicates = kind == kCommunication;
    (communicates ? trace.communication : trace.compute)
        .push_back({copies         ? "copy engines"
                    : communicates ? communication_call(kernel.name)
                                   : "",
                    kernel.stream, kernel.begin_ns, kernel.end_ns});
  }
  time.by_kind = most_first(by_kind);
  time.by_name = most_first(by_name);
  time.communication = measure_overlap(trace);
  for (KindOverlap& row : time.communication) {
    row.calls /= counted;
    row.total_ns /= counted;
    row.covered_ns /= counted;
    row.exposed_ns /= counted;
  }
  return time;
}

KernelTime kernel_time(at::Device device, const std::function<void()>& work) {
  if (!device.is_cuda()) {
    work();
    return {};
  }
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  const std::set<profiler::ActivityType> activities{profiler::ActivityType::CUDA};
  synchronize(device);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  for (int i = 0; i < kTracedRepeats; ++i) work();
  synchronize(device);
  const auto result = profiler::disableProfiler();
  std::vector<KernelSpan> kernels;
  for (const auto& event : result->events())
    if (event.deviceType() == c10::DeviceType::CUDA)
      kernels.push_back({event.name(), event.deviceResourceId(), static_cast<int64_t>(event.startNs()),
                         static_cast<int64_t>(event.endNs())});
  return summarize_kernels(std::move(kernels), kTracedRepeats);
}

}  // namespace hearth
