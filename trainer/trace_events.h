// The trace file of one rank: Chrome's trace event format (an array traceEvents, times in microseconds), as
// Perfetto and chrome://tracing read it. Pure functions on JSON; what records is trainer/trace.h.
// Thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

// A call of parallel/comm.h or of the control plane, as the flight recorder saw it.
struct TracedCall {
  uint64_t id = 0;              // of the flight recorder
  std::string op, site, group;  // "reduce_scatter", "grad.bucket3", "dp"
  uint64_t seq = 0;             // within the group
  int64_t size_bytes = 0;
  int64_t begin_ns = 0, end_ns = 0;  // of the system clock
};

// Name of the host span in which a call is launched: "reduce_scatter grad.bucket3 #412" (id 412). The only
// link between the profiler's kernels and our calls.
std::string span_name(std::string_view op, std::string_view site, uint64_t id);

struct TraceIdentity {
  int rank = 0;
  std::string place;         // "pp1 cp0 dp1 tp0": for people
  int64_t host_process = 0;  // pid that the profiler wrote host events under
};

// Turns what kineto wrote into the rank's trace:
// * a kernel that a call launched gets the call's name, op, site, group and size in its args, and its stream
// the group's name;
// * a call that launched no kernel (MPI, control plane) becomes an asynchronous event from begin to end;
// * processes are numbered by rank (host 2 rank, device 2 rank + 1) and named, so that files of several ranks
// can be merged.
nlohmann::json rank_trace(nlohmann::json profiled, const std::vector<TracedCall>& calls,
                          const TraceIdentity& identity);

// One trace of several ranks. Times are aligned by the system clocks of the hosts.
nlohmann::json merge_traces(std::vector<nlohmann::json> traces);

}  // namespace hearth
