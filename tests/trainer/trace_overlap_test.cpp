#include "trainer/trace_overlap.h"

#include <boost/test/unit_test.hpp>
#include <map>
#include <set>

#include "base/error.h"
#include "trainer/trace_events.h"

using namespace hearth;
using nlohmann::json;

namespace {

constexpr int64_t kMainStream = 7, kTpStream = 20, kDpStream = 24;

TraceSpan compute(int64_t lane, int64_t begin, int64_t end) {
  return {"", lane, begin, end};
}
TraceSpan call(const char* kind, int64_t lane, int64_t begin, int64_t end) {
  return {kind, lane, begin, end};
}

RankTrace trace_of(std::vector<TraceSpan> communication, std::vector<TraceSpan> computing) {
  return {.rank = 0,
          .place = "alone",
          .steps = 1,
          .communication = std::move(communication),
          .compute = std::move(computing)};
}

void check_rows(const RankTrace& trace, const std::vector<KindOverlap>& want) {
  const auto got = measure_overlap(trace);
  BOOST_TEST_REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    BOOST_TEST_CONTEXT("row " << i) {
      BOOST_TEST(got[i].kind == want[i].kind);
      BOOST_TEST(got[i].calls == want[i].calls);
      BOOST_TEST(got[i].total_ns == want[i].total_ns);
      BOOST_TEST(got[i].covered_ns == want[i].covered_ns);
      BOOST_TEST(got[i].exposed_ns == want[i].exposed_ns);
    }
  }
}

json event(const char* category, const std::string& name, int64_t pid, int64_t tid, double ts, double dur,
           json args) {
  return {{"ph", "X"},  {"cat", category}, {"name", name}, {"pid", pid},
          {"tid", tid}, {"ts", ts},        {"dur", dur},   {"args", args}};
}

// As kineto writes it: process 4711 on device 0, two host threads (the second one runs backward).
json profiled() {
  json events = json::array();
  const auto add = [&](json e) { events.push_back(std::move(e)); };
  add(event("user_annotation", "step 3", 4711, 1, 1000, 900, {{"External id", 1}}));
  add(event("cpu_op", span_name("all_gather", "tp.qkv.x", 41), 4711, 1, 1010, 20, {{"External id", 2}}));
  add(event("cuda_driver", "cuLaunchKernelExC", 4711, 1, 1015, 5, {{"correlation", 501}}));
  add(event("cpu_op", span_name("reduce_scatter", "grad.bucket0", 42), 4711, 2, 1100, 20,
            {{"External id", 3}}));
  add(event("cuda_driver", "cuLaunchKernelExC", 4711, 2, 1110, 5, {{"correlation", 502}}));
  add(event("cuda_runtime", "cudaLaunchKernel", 4711, 1, 1112, 2, {{"correlation", 503}}));
  // Matched by the external id; by the launch alone; a compute kernel; one that no call of ours launched.
  add(event("kernel", "ncclDevKernel_AllGather_RING_LL", 0, kTpStream, 1100, 100,
            {{"External id", 2}, {"correlation", 501}}));
  add(event("kernel", "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 0, kDpStream, 1200, 200,
            {{"correlation", 502}}));
  add(event("kernel", "gemm", 0, kMainStream, 1150, 100, {{"External id", 1}, {"correlation", 503}}));
  add(event("kernel", "ncclDevKernel_SendRecv", 0, kDpStream, 1500, 10, {{"correlation", 900}}));
  add({{"ph", "s"}, {"id", 5}, {"pid", 4711}, {"tid", 1}, {"ts", 1015}, {"cat", "ac2g"}, {"name", "ac2g"}});
  add({{"ph", "M"},
       {"name", "process_name"},
       {"pid", 0},
       {"tid", 0},
       {"ts", 0},
       {"args", {{"name", "python"}}}});
  add({{"ph", "M"},
       {"name", "thread_name"},
       {"pid", 0},
       {"tid", kTpStream},
       {"ts", 0},
       {"args", {{"name", "stream 20"}}}});
  add({{"ph", "X"},
       {"cat", "Trace"},
       {"name", "PyTorch Profiler (0)"},
       {"pid", "Spans"},
       {"tid", "x"},
       {"ts", 0},
       {"dur", 1}});
  return {{"schemaVersion", 1},
          {"baseTimeNanoseconds", 1'000'000'000},
          {"deviceProperties", {{{"id", 0}}}},
          {"traceEvents", events}};
}

std::vector<TracedCall> calls() {
  return {{.id = 41,
           .op = "all_gather",
           .site = "tp.qkv.x",
           .group = "tp",
           .seq = 9,
           .size_bytes = 64,
           .begin_ns = 1,
           .end_ns = 2},
          {.id = 42,
           .op = "reduce_scatter",
           .site = "grad.bucket0",
           .group = "dp",
           .seq = 3,
           .size_bytes = 128,
           .begin_ns = 1,
           .end_ns = 2},
          {.id = 43,
           .op = "vote",
           .site = "stop",
           .group = "world",
           .seq = 1,
           .size_bytes = 1,
           .begin_ns = 1'001'600'000,
           .end_ns = 1'001'650'000}};
}

json traced(int rank) {
  return rank_trace(profiled(), calls(), {.rank = rank, .place = "tp1", .host_process = 4711});
}

const json& find(const json& trace, const std::string& name) {
  for (const json& e : trace.at("traceEvents"))
    if (e.at("name") == name) return e;
  BOOST_FAIL("no event " << name);
  throw 0;
}

}  // namespace

BOOST_AUTO_TEST_CASE(kinds_have_the_names_of_the_field) {
  BOOST_TEST(communication_kind("tp", "all_gather") == "tp all-gather");
  BOOST_TEST(communication_kind("dp", "reduce_scatter") == "dp reduce-scatter");
  BOOST_TEST(communication_kind("pp", "recv") == "pp send/recv");
  BOOST_TEST(communication_kind("cp", "send") == "cp ring");
  BOOST_TEST(communication_kind("cp", "all_to_all") == "cp all-to-all");
}

BOOST_AUTO_TEST_CASE(covered_time_is_what_compute_overlaps) {
  // 100 ns of which [20, 30) and [50, 100) are covered; the second call not at all, the third whole.
  check_rows(
      trace_of({call("tp all-gather", kTpStream, 0, 100), call("tp all-gather", kTpStream, 200, 210),
                call("dp reduce-scatter", kDpStream, 300, 340)},
               {compute(kMainStream, 20, 30), compute(kMainStream, 50, 150), compute(kMainStream, 210, 220),
                compute(kMainStream, 290, 400)}),
      {{"dp reduce-scatter", 1, 40, 40, 0}, {"tp all-gather", 2, 110, 60, 50}, {"all", 3, 150, 100, 50}});
}

BOOST_AUTO_TEST_CASE(overlapping_and_nested_compute_counts_once) {
  check_rows(
      trace_of({call("tp all-gather", kTpStream, 0, 100)},
               {compute(8, 10, 60), compute(kMainStream, 20, 30), compute(9, 40, 80), compute(9, 80, 80)}),
      {{"tp all-gather", 1, 100, 70, 30}, {"all", 1, 100, 70, 30}});
}

BOOST_AUTO_TEST_CASE(compute_on_the_calls_own_stream_covers_nothing) {
  check_rows(
      trace_of({call("tp all-gather", kMainStream, 0, 100), call("dp all-gather", kDpStream, 0, 100)},
               {compute(kMainStream, 0, 100)}),
      {{"dp all-gather", 1, 100, 100, 0}, {"tp all-gather", 1, 100, 0, 100}, {"all", 2, 200, 100, 100}});
}

BOOST_AUTO_TEST_CASE(a_call_does_not_cover_a_call_and_exposed_time_is_wall_time) {
  // Two calls at once, no compute: 100 + 60 ns of calls, 100 ns of wall time.
  check_rows(trace_of({call("pp send/recv", 30, 0, 100), call("pp send/recv", 31, 20, 80)}, {}),
             {{"pp send/recv", 2, 160, 0, 100}, {"all", 2, 160, 0, 100}});
  check_rows(trace_of({}, {compute(kMainStream, 0, 10)}), {});
}

BOOST_AUTO_TEST_CASE(kernels_get_the_name_of_the_call_that_launched_them) {
  const json trace = traced(3);
  const json& gather = find(trace, "all_gather tp.qkv.x");
  BOOST_TEST(gather["args"]["kernel"] == "ncclDevKernel_AllGather_RING_LL");
  BOOST_TEST(gather["args"]["group"] == "tp");
  BOOST_TEST(gather["args"]["seq"] == 9);
  BOOST_TEST(gather["args"]["size_bytes"] == 64);
  BOOST_TEST(gather["pid"] == 7);
  BOOST_TEST(gather["tid"] == kTpStream);
  BOOST_TEST(find(trace, "reduce_scatter grad.bucket0")["args"]["group"] == "dp");
  BOOST_TEST(!find(trace, "gemm")["args"].contains("group"));
  BOOST_TEST(!find(trace, "ncclDevKernel_SendRecv")["args"].contains("group"));
  BOOST_TEST(find(trace, "thread_name")["args"]["name"] == "stream 20 tp");
  BOOST_TEST(find(trace, "step 3")["pid"] == 6);
  BOOST_TEST(find(trace, "process_name")["args"]["name"] == "rank 3 tp1 host");
}

// Copy engines gather: copies that a call launched are its time, others are nobody's.
BOOST_AUTO_TEST_CASE(copies_that_a_call_launched_are_its_own) {
  json events = profiled();
  for (json& e : events["traceEvents"])
    if (e.value("name", "") == "ncclDevKernel_AllGather_RING_LL") {
      e["cat"] = "gpu_memcpy";
      e["name"] = "Memcpy PtoP (Device -> Device)";
    }
  events["traceEvents"].push_back(event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, kMainStream, 1300,
                                        10, {{"correlation", 901}}));
  const json trace = rank_trace(events, calls(), {.rank = 3, .place = "tp1", .host_process = 4711});
  BOOST_TEST(find(trace, "all_gather tp.qkv.x")["args"]["kernel"] == "Memcpy PtoP (Device -> Device)");
  check_rows(read_rank_trace(trace, "trace"), {{"dp reduce-scatter", 1, 200'000, 50'000, 150'000},
                                               {"tp all-gather", 1, 100'000, 50'000, 50'000},
                                               {"unnamed", 1, 10'000, 0, 10'000},
                                               {"world vote", 1, 50'000, 0, 50'000},
                                               {"all", 4, 360'000, 100'000, 260'000}});
}

BOOST_AUTO_TEST_CASE(a_call_without_a_kernel_is_an_event_from_begin_to_end) {
  const json trace = traced(3);
  int events = 0;
  for (const json& e : trace.at("traceEvents")) {
    if (e.value("cat", "") != "collective") continue;
    BOOST_TEST(e["id"] == "3.43");
    BOOST_TEST(e["name"] == "vote stop");
    BOOST_TEST(e["ts"].get<double>() == (e["ph"] == "b" ? 1600.0 : 1650.0));
    ++events;
  }
  BOOST_TEST(events == 2);
}

BOOST_AUTO_TEST_CASE(a_written_trace_is_read_back) {
  const RankTrace trace = read_rank_trace(json::parse(traced(3).dump()), "trace");
  BOOST_TEST(trace.rank == 3);
  BOOST_TEST(trace.steps == 1);
  // us -> ns. The gather [1100, 1200) is covered in [1150, 1200), the reduce-scatter [1200, 1400) in [1200,
  // 1250).
  check_rows(trace, {{"dp reduce-scatter", 1, 200'000, 50'000, 150'000},
                     {"tp all-gather", 1, 100'000, 50'000, 50'000},
                     {"unnamed", 1, 10'000, 0, 10'000},
                     {"world vote", 1, 50'000, 0, 50'000},
                     {"all", 4, 360'000, 100'000, 260'000}});
}

BOOST_AUTO_TEST_CASE(without_a_device_operators_are_the_compute) {
  json trace = traced(0);
  json host = json::array();
  for (const json& e : trace["traceEvents"])
    if (e.value("cat", "") != "kernel") host.push_back(e);
  host.push_back(event("cpu_op", "aten::mm", 0, 1, 1610, 10, json::object()));
  host.push_back(
      event("cpu_op", "MulBackward0", 0, 1, 1600, 50, json::object()));  // holds waits too: not compute
  trace["traceEvents"] = host;
  check_rows(read_rank_trace(trace, "trace"),
             {{"world vote", 1, 50'000, 10'000, 40'000}, {"all", 1, 50'000, 10'000, 40'000}});
}

BOOST_AUTO_TEST_CASE(other_files_are_refused) {
  BOOST_CHECK_THROW(read_rank_trace(json::array(), "x"), Error);
  BOOST_CHECK_THROW(read_rank_trace(profiled(), "x"), Error);
  json no_step = traced(0);
  no_step["traceEvents"] = json::array();
  BOOST_CHECK_THROW(read_rank_trace(no_step, "x"), Error);
  json broken = traced(0);
  for (json& e : broken["traceEvents"])
    if (e.value("cat", "") == "kernel") e.erase("ts");
  BOOST_CHECK_THROW(read_rank_trace(broken, "x"), Error);
}

BOOST_AUTO_TEST_CASE(merged_ranks_keep_apart_and_share_one_clock) {
  json late = profiled();
  late["baseTimeNanoseconds"] = 1'000'500'000;  // 500 us later
  const json merged =
      merge_traces({traced(0), rank_trace(late, {}, {.rank = 1, .place = "tp1", .host_process = 4711})});
  std::map<int64_t, double> step_at;
  std::set<int64_t> arrows;
  for (const json& e : merged["traceEvents"]) {
    if (e["name"] == "step 3") step_at[e["pid"]] = e["ts"];
    if (e["name"] == "ac2g") arrows.insert(e["id"].get<int64_t>());
  }
  BOOST_TEST(step_at.size() == 2u);
  BOOST_TEST(step_at.at(0) == 1000.0);
  BOOST_TEST(step_at.at(2) == 1500.0);
  BOOST_TEST(arrows.size() == 2u);
}
