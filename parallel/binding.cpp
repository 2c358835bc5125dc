#include "parallel/binding.h"

#include <fmt/core.h>
#include <sched.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hearth {

std::vector<int> allowed_cores() {
  // A fixed cpu_set_t holds 1024 cores and larger machines refuse it, so the set grows until the kernel is
  // content.
  for (int limit = CPU_SETSIZE; limit <= CPU_SETSIZE << 6; limit *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(limit));
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(limit));
    std::vector<int> cores;
    const bool known = set != nullptr && ::sched_getaffinity(0, bytes, set) == 0;
    for (int core = 0; known && core < limit; ++core)
      if (CPU_ISSET_S(static_cast<size_t>(core), bytes, set)) cores.push_back(core);
    CPU_FREE(set);
    if (known) return cores;
  }
  return {};
}

std::string format_cores(const std::vector<int>& cores) {
  std::string text;
  for (size_t i = 0; i < cores.size();) {
    size_t last = i;
    while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", cores[i]);
    if (last > i) text += fmt::format("-{}", cores[last]);
    i = last + 1;
  }
  return text;
}

std::vector<RankPlace> gather_places(ControlPlane& control, std::optional<int> device) {
  const auto cores = allowed_cores();
  const nlohmann::json mine = {{"local_rank", control.local_rank()},
                               {"host", control.host()},
                               {"cores", format_cores(cores)},
                               {"num_cores", cores.size()},
                               {"device", device.value_or(-1)}};
  std::vector<RankPlace> places;
  for (const auto& text : control.all_gather(mine.dump(), "start.places")) {
    const auto json = nlohmann::json::parse(text);
    const int ordinal = json.at("device").get<int>();
    places.push_back({.rank = static_cast<int>(places.size()),
                      .local_rank = json.at("local_rank").get<int>(),
                      .host = json.at("host").get<std::string>(),
                      .cores = json.at("cores").get<std::string>(),
                      .num_cores = json.at("num_cores").get<int>(),
                      .device = ordinal < 0 ? std::nullopt : std::optional<int>(ordinal)});
  }
  return places;
}

std::string describe(const RankPlace& place) {
  return fmt::format("rank={} host={} local_rank={} device={} cores={}", place.rank, place.host,
                     place.local_rank, place.device ? std::to_string(*place.device) : "cpu", place.cores);
}

std::optional<int> device_of(int local_rank, int device_count) {
  if (device_count <= 0) return std::nullopt;
  return local_rank % device_count;
}

std::optional<std::string> nccl_host_id(const ControlPlane& control, int device_count) {
  if (device_count <= 0 || control.local_world_size() <= device_count) return std::nullopt;
  return fmt::format("{}-rank{}", control.host(), control.rank());
}

}  // namespace hearth
