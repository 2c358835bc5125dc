#include "trainer/bench/kernel_time.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <array>
#include <map>

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
  // The first follows a pause, in which the card cooled: it is not counted.
  for (int i = 0; i < kTracedRepeats; ++i) work();
  synchronize(device);
  const auto result = profiler::disableProfiler();
  std::vector<const profiler::KinetoEvent*> events;
  for (const auto& event : result->events())
    if (event.deviceType() == c10::DeviceType::CUDA) events.push_back(&event);
  std::sort(events.begin(), events.end(), [](auto* a, auto* b) { return a->startNs() < b->startNs(); });
  events.erase(events.begin(), events.begin() + static_cast<std::ptrdiff_t>(events.size() / kTracedRepeats));
  const auto seconds = [](auto nanoseconds) {
    return static_cast<double>(nanoseconds) * 1e-9 / (kTracedRepeats - 1);
  };
  KernelTime time;
  std::map<std::string, double> by_kind, by_name;
  auto busy_until = events.empty() ? 0 : events.front()->startNs();
  for (const auto* event : events) {
    by_kind[std::string(kind_of_kernel(event->name()))] += seconds(event->durationNs());
    by_name[short_name(event->name())] += seconds(event->durationNs());
    if (event->startNs() > busy_until) time.idle += seconds(event->startNs() - busy_until);
    busy_until = std::max(busy_until, event->endNs());
  }
  time.by_kind = most_first(by_kind);
  time.by_name = most_first(by_name);
  return time;
}

}  // namespace hearth
