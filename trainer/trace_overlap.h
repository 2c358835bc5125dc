// How much of the communication in a trace (trainer/trace_events.h) runs while the rank computes: per kind,
// the share of its time that a compute kernel on another stream of the same rank covers. Pure functions,
// thread-safe. A collective's time is that of its kernel and includes waiting for the last rank; where copy
// engines gather it is that of this rank's copies, without waiting, each a call of its own. Calls without a
// kernel (MPI) count from begin to end, and the compute that covers them are the tensor operators of the
// host.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace hearth {

struct TraceSpan {
  std::string kind;   // of communication; empty: compute
  int64_t lane = -1;  // stream; -1: none (host)
  int64_t begin_ns = 0, end_ns = 0;
};

struct RankTrace {
  int rank = -1;
  std::string place;
  int64_t steps = 0;
  std::vector<TraceSpan> communication, compute;
};

// Throws Error{BadInput} where `trace` is not one that Hearth wrote for one rank.
RankTrace read_rank_trace(const nlohmann::json& trace, const std::string& file);

// "tp all-gather", "dp reduce-scatter", "pp send/recv", "cp ring" (the send/recv of context parallelism).
std::string communication_kind(const std::string& group, const std::string& op);

struct KindOverlap {
  std::string kind;
  int64_t calls = 0;
  int64_t total_ns = 0;    // sum over the calls
  int64_t covered_ns = 0;  // of it, while compute ran on another stream
  int64_t exposed_ns = 0;  // wall time in which a call of the kind, and no compute on another stream, ran
  double share() const {
    return total_ns > 0 ? static_cast<double>(covered_ns) / static_cast<double>(total_ns) : 0;
  }
  bool operator==(const KindOverlap&) const = default;
};

// One row per kind, in alphabetical order, and last the row "all".
std::vector<KindOverlap> measure_overlap(const RankTrace& trace);

}  // namespace hearth
