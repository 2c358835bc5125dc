// The one page that explains why a job does not go on: which rank is missing, at which call, what the others
// wait for, and what to do. Pure; hang_reporter.h gathers the states and prints the page.
// A rank that gave no answer is missing. Of those that answered: one that a peer waits for and that waits for
// nobody itself (waits are followed to their end, across groups: Nvidia's resiliency extension, too, tells
// the one who waits from the one who is missing). Where ranks make different calls, or wait for each other, a
// rank has left the order that all share: the one whose waiting call is not the one that came after the same
// calls in earlier steps, unless that is so for most ranks, as at a first validation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/flight_recorder.h"

namespace hearth {

struct HangCall {
  std::string op, site, group, dtype;
  std::vector<int> ranks;  // of the group; empty: all ranks, by the control plane
  uint64_t seq = 0;
  int64_t size_bytes = 0;
  int peer = -1;     // global rank, of a send or recv
  double age_s = 0;  // since the rank entered it; of a finished call: since it ended
  bool operator==(const HangCall&) const = default;
};

// What one rank knows about itself when it is asked.
struct RankState {
  int rank = 0;
  std::string alarm;               // what it has seen, if it was the one to raise the alarm
  std::string error;               // it ends by an error of its own
  std::vector<HangCall> waits;     // calls in which it waits, oldest first
  std::vector<HangCall> entered;   // newest call of each group
  std::vector<HangCall> finished;  // newest finished call of each group
  std::string usual;               // what came after the same calls before, where something else is under way
  bool operator==(const RankState&) const = default;
};

RankState rank_state(int rank, const FlightRecorder& recorder);
std::string to_json(const RankState& state);
RankState parse_rank_state(std::string_view json);  // throws Error{BadInput}

// What all ranks know of one rank from the start on.
struct RankIdentity {
  std::string host;
  int64_t pid = 0;
  std::string place;    // "pp 0 dp 1 cp 0 ep 0 tp 3"; may be empty
  std::string process;  // "has ended": what the kernel says where it can be asked, else empty
};

struct HangInput {
  std::vector<RankIdentity> ranks;
  std::vector<std::optional<RankState>> states;  // same length; nullopt: no answer
  std::string folder;                            // where the states lie
};

struct HangFindings {
  enum class Kind { Gone, Late, OutOfOrder, Entered };
  Kind kind = Kind::Entered;
  std::vector<int> missing;  // ascending; empty: every rank is in the call, so a device or a link hangs
};

HangFindings find_missing(const HangInput& input);
std::string hang_page(const HangInput& input);

// "0-3, 7"
std::string format_ranks(const std::vector<int>& ranks);

}  // namespace hearth
