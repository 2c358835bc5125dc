#include "trainer/trace_overlap.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/error.h"

namespace hearth {
namespace {

using nlohmann::json;
using Interval = std::pair<int64_t, int64_t>;  // begin, end

// Disjoint and in order.
std::vector<Interval> unite(std::vector<Interval> intervals) {
  std::sort(intervals.begin(), intervals.end());
  std::vector<Interval> out;
  for (const Interval& i : intervals) {
    if (i.second <= i.first) continue;
    if (!out.empty() && i.first <= out.back().second) {
      out.back().second = std::max(out.back().second, i.second);
    } else {
      out.push_back(i);
    }
  }
  return out;
}

int64_t measure(const std::vector<Interval>& disjoint) {
  int64_t sum = 0;
  for (const auto& [begin, end] : disjoint) sum += end - begin;
  return sum;
}

// The parts of `of` that no interval of `disjoint` covers.
std::vector<Interval> uncovered(Interval of, const std::vector<Interval>& disjoint) {
  auto at = std::upper_bound(disjoint.begin(), disjoint.end(), of.first,
                             [](int64_t time, const Interval& i) { return time < i.second; });
  std::vector<Interval> out;
  for (; at != disjoint.end() && at->first < of.second; ++at) {
    if (at->first > of.first) out.emplace_back(of.first, at->first);
    of.first = at->second;
  }
  if (of.first < of.second) out.push_back(of);
  return out;
}

TraceSpan span(const json& event, std::string kind, int64_t lane) {
  const double begin = event.at("ts").get<double>();
  return {std::move(kind), lane, std::llround(begin * 1e3),
          std::llround((begin + event.value("dur", 0.0)) * 1e3)};
}

bool is_nccl(const json& event) {
  return event.value("name", "").rfind("nccl", 0) == 0;
}

void read_event(const json& event, RankTrace& out, std::vector<TraceSpan>& host_compute,
                std::map<std::string, TraceSpan>& open) {
  const std::string category = event.value("cat", ""), name = event.value("name", "");
  const json args = event.value("args", json::object());
  if (category == "kernel" || (category == "gpu_memcpy" && args.contains("site"))) {
    const auto stream = event.at("tid").get<int64_t>();
    if (args.contains("site")) {
      out.communication.push_back(span(event, communication_kind(args.at("group"), args.at("op")), stream));
    } else if (is_nccl(event)) {
      out.communication.push_back(span(event, "unnamed", stream));
    } else {
      out.compute.push_back(span(event, "", stream));
    }
  } else if (category == "collective" && event.at("ph") == "b") {
    open[event.at("id")] = span(event, communication_kind(args.at("group"), args.at("op")), -1);
  } else if (category == "collective") {
    auto begun = open.extract(event.at("id").get<std::string>());
    if (begun.empty()) return;
    begun.mapped().end_ns = span(event, "", -1).begin_ns;
    out.communication.push_back(std::move(begun.mapped()));
  } else if (category == "cpu_op" && name.rfind("aten::", 0) == 0) {
    host_compute.push_back(span(event, "", 0));
  } else if (category == "user_annotation" && name.rfind("step ", 0) == 0) {
    ++out.steps;
  }
}

}  // namespace

std::string communication_kind(const std::string& group, const std::string& op) {
  if (op == "send" || op == "recv") return group == "cp" ? "cp ring" : group + " send/recv";
  std::string dashed = op;
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  return group + " " + dashed;
}

RankTrace read_rank_trace(const json& trace, const std::string& file) {
  HEARTH_CHECK(trace.is_object() && trace.contains("traceEvents") && trace.contains("hearth"), BadInput,
               "{} is not the trace of one rank: give files of RUN/trace, which profile.enabled makes", file);
  RankTrace out;
  try {
    out.rank = trace["hearth"].at("rank");
    out.place = trace["hearth"].at("place");
    std::vector<TraceSpan> host_compute;
    std::map<std::string, TraceSpan> open;
    for (const json& event : trace["traceEvents"]) read_event(event, out, host_compute, open);
    if (out.compute.empty()) out.compute = std::move(host_compute);  // no device
  } catch (const json::exception& error) {
    fail(ErrorKind::BadInput, "{} is not a trace that Hearth wrote: {}", file, error.what());
  }
  HEARTH_CHECK(out.steps > 0, BadInput, "{} holds no whole step", file);
  return out;
}

std::vector<KindOverlap> measure_overlap(const RankTrace& trace) {
  std::map<int64_t, std::vector<Interval>> compute_beside;  // lane -> compute on all other lanes
  for (const TraceSpan& call : trace.communication) {
    if (compute_beside.count(call.lane) != 0) continue;
    std::vector<Interval> others;
    for (const TraceSpan& span : trace.compute)
      if (span.lane != call.lane) others.emplace_back(span.begin_ns, span.end_ns);
    compute_beside[call.lane] = unite(std::move(others));
  }
  std::map<std::string, KindOverlap> kinds;
  std::map<std::string, std::vector<Interval>> exposed;
  for (const TraceSpan& call : trace.communication) {
    const auto bare = uncovered({call.begin_ns, call.end_ns}, compute_beside.at(call.lane));
    for (const std::string& kind : {call.kind, std::string("all")}) {
      KindOverlap& row = kinds[kind];
      ++row.calls;
      row.total_ns += call.end_ns - call.begin_ns;
      row.covered_ns += call.end_ns - call.begin_ns - measure(bare);
      exposed[kind].insert(exposed[kind].end(), bare.begin(), bare.end());
    }
  }
  std::vector<KindOverlap> rows;
  for (auto& [kind, row] : kinds) {
    row.kind = kind;
    row.exposed_ns = measure(unite(std::move(exposed[kind])));
    if (kind != "all") rows.push_back(row);
  }
  if (!kinds.empty()) rows.push_back(kinds["all"]);
  return rows;
}

}  // namespace hearth
