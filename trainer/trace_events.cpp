#include "trainer/trace_events.h"

#include <fmt/core.h>

#include <map>
#include <set>
#include <unordered_map>
#include <utility>

namespace hearth {
namespace {

using nlohmann::json;

// Ids of arrows count from 1 in every file; ranks are kept apart by more than one trace ever has.
constexpr int64_t kArrowsOfARank = 1'000'000'000;

bool is_nccl_kernel(const json& event) {
  return event.value("cat", "") == "kernel" && event.value("name", "").rfind("nccl", 0) == 0;
}

// NCCL's too, where copy engines gather.
bool is_copy(const json& event) {
  return event.value("cat", "") == "gpu_memcpy";
}

// A span that tells of the profiler itself, or metadata that is written anew.
bool is_noise(const json& event) {
  return !event.contains("pid") || !event["pid"].is_number_integer() ||
         event.value("name", "").rfind("process_", 0) == 0;
}

json metadata(const char* name, int64_t pid, json args) {
  return {{"ph", "M"}, {"name", name}, {"pid", pid}, {"tid", 0}, {"ts", 0}, {"args", std::move(args)}};
}

// Finds the call that launched a kernel: by the profiler's external id, which is that of the innermost host
// span around the launch; else by the launch itself (same correlation id), which lies in time inside the span
// on the same thread.
class Launches {
 public:
  Launches(const json& events, const std::vector<TracedCall>& calls) {
    std::unordered_map<std::string, const TracedCall*> by_name;
    for (const TracedCall& call : calls) by_name[span_name(call.op, call.site, call.id)] = &call;
    for (const json& event : events) {
      const std::string category = event.value("cat", "");
      if (category == "cpu_op") {
        const auto named = by_name.find(event.value("name", ""));
        if (named != by_name.end()) add_span(event, *named->second);
      } else if (category == "cuda_runtime" || category == "cuda_driver") {
        const json args = event.value("args", json::object());
        if (args.contains("correlation"))
          launches_[args["correlation"].get<int64_t>()] = {event.at("tid").get<int64_t>(),
                                                           event.at("ts").get<double>()};
      }
    }
  }

  const TracedCall* find(const json& kernel) const {
    const json& args = kernel.at("args");
    if (const auto span = by_external_id_.find(args.value("External id", int64_t{-1}));
        span != by_external_id_.end())
      return span->second;
    const auto launch = launches_.find(args.value("correlation", int64_t{-1}));
    if (launch == launches_.end()) return nullptr;
    const auto thread = spans_.find(launch->second.first);
    if (thread == spans_.end()) return nullptr;
    auto next = thread->second.upper_bound(launch->second.second);
    if (next == thread->second.begin()) return nullptr;
    const auto& [end, call] = std::prev(next)->second;
    return launch->second.second <= end ? call : nullptr;
  }

 private:
  void add_span(const json& event, const TracedCall& call) {
    const double begin = event.at("ts").get<double>(), end = begin + event.value("dur", 0.0);
    spans_[event.at("tid").get<int64_t>()][begin] = {end, &call};
    const auto id = event.value("args", json::object()).value("External id", int64_t{-1});
    if (id > 0) by_external_id_[id] = &call;
  }

  std::unordered_map<int64_t, const TracedCall*> by_external_id_;
  std::unordered_map<int64_t, std::pair<int64_t, double>> launches_;  // correlation -> thread, time
  std::map<int64_t, std::map<double, std::pair<double, const TracedCall*>>>
      spans_;  // thread -> begin -> end, call
};

json call_args(const TracedCall& call) {
  return {{"op", call.op},
          {"site", call.site},
          {"group", call.group},
          {"seq", call.seq},
          {"size_bytes", call.size_bytes}};
}

// Pairs of begin and end, since calls of one group may overlap.
void add_host_call(json& events, const TracedCall& call, int64_t base_ns, int64_t pid, int rank) {
  json event{{"cat", "collective"},
             {"name", call.op + " " + call.site},
             {"id", fmt::format("{}.{}", rank, call.id)},
             {"pid", pid},
             {"tid", 0}};
  const auto at = [&](const char* phase, int64_t ns) {
    event["ph"] = phase;
    event["ts"] = static_cast<double>(ns - base_ns) / 1e3;
    events.push_back(event);
  };
  event["args"] = call_args(call);
  at("b", call.begin_ns);
  event.erase("args");
  at("e", std::max(call.begin_ns, call.end_ns));
}

void renumber(json& event, const TraceIdentity& identity) {
  const bool host = event["pid"].get<int64_t>() == identity.host_process || event["pid"].get<int64_t>() < 0;
  event["pid"] = 2 * identity.rank + (host ? 0 : 1);
  if (event.contains("id") && event["id"].is_number_integer())
    event["id"] = event["id"].get<int64_t>() + kArrowsOfARank * identity.rank;
}

}  // namespace

std::string span_name(std::string_view op, std::string_view site, uint64_t id) {
  return fmt::format("{} {} #{}", op, site, id);
}

json rank_trace(json profiled, const std::vector<TracedCall>& calls, const TraceIdentity& identity) {
  const auto base_ns = profiled.value("baseTimeNanoseconds", int64_t{0});
  const int64_t host = 2 * identity.rank, device = host + 1;
  json& all = profiled["traceEvents"];
  const Launches launches(all, calls);
  std::set<uint64_t> with_kernel;
  std::map<int64_t, std::string> groups;  // of streams
  json events = json::array();
  for (json& event : all) {
    if (is_noise(event)) continue;
    if (is_nccl_kernel(event) || is_copy(event)) {
      if (const TracedCall* call = launches.find(event)) {
        event["args"]["kernel"] = event["name"];
        event["args"].update(call_args(*call));
        event["name"] = call->op + " " + call->site;
        with_kernel.insert(call->id);
        groups[event.at("tid").get<int64_t>()] = call->group;
      }
    }
    renumber(event, identity);
    events.push_back(std::move(event));
  }
  for (const TracedCall& call : calls)
    if (with_kernel.count(call.id) == 0) add_host_call(events, call, base_ns, host, identity.rank);
  for (json& event : events) {
    if (event.value("name", "") != "thread_name" || event["pid"] != device) continue;
    const auto group = groups.find(event.at("tid").get<int64_t>());
    if (group != groups.end())
      event["args"]["name"] = fmt::format("stream {} {}", group->first, group->second);
  }
  const std::string name = fmt::format("rank {} {}", identity.rank, identity.place);
  events.push_back(metadata("process_name", host, {{"name", name + " host"}}));
  events.push_back(metadata("process_sort_index", host, {{"sort_index", host}}));
  if (!groups.empty() || profiled.value("deviceProperties", json::array()).size() > 0) {
    events.push_back(metadata("process_name", device, {{"name", name + " device"}}));
    events.push_back(metadata("process_sort_index", device, {{"sort_index", device}}));
  }
  return {{"schemaVersion", 1},
          {"displayTimeUnit", "ms"},
          {"baseTimeNanoseconds", base_ns},
          {"deviceProperties", profiled.value("deviceProperties", json::array())},
          {"hearth", {{"rank", identity.rank}, {"place", identity.place}}},
          {"traceEvents", std::move(events)}};
}

json merge_traces(std::vector<json> traces) {
  json merged{{"schemaVersion", 1}, {"displayTimeUnit", "ms"}, {"traceEvents", json::array()}};
  for (json& trace : traces) {
    const auto base_ns = trace.value("baseTimeNanoseconds", int64_t{0});
    if (!merged.contains("baseTimeNanoseconds")) merged["baseTimeNanoseconds"] = base_ns;
    const double shift_us = static_cast<double>(base_ns - merged["baseTimeNanoseconds"].get<int64_t>()) / 1e3;
    for (json& event : trace["traceEvents"]) {
      if (shift_us != 0 && event.value("ph", "") != "M")
        event["ts"] = event.at("ts").get<double>() + shift_us;
      merged["traceEvents"].push_back(std::move(event));
    }
  }
  return merged;
}

}  // namespace hearth
