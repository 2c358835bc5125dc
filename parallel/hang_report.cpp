#include "parallel/hang_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/error.h"

namespace hearth {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(HangCall, op, site, group, dtype, ranks, seq, size_bytes, peer, age_s)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RankState, rank, alarm, error, waits, entered, finished, usual)

namespace {

using Entry = FlightRecorder::Entry;
using Kind = HangFindings::Kind;

constexpr size_t kWaitsKept = 64;   // over NCCL the host runs ahead by many calls
constexpr size_t kLines = 12;       // of one kind on the page
constexpr size_t kSmallWorld = 16;  // up to here every rank has its line

std::string words(const HangCall& call) {
  const std::string peer =
      call.peer < 0 ? "" : fmt::format(" {} rank {}", call.op == "send" ? "to" : "from", call.peer);
  const std::string ranks = call.ranks.empty() ? "" : " of ranks " + format_ranks(call.ranks);
  return fmt::format("{} '{}'{} (group {}{}, call {}, {} bytes {})", call.op, call.site, peer, call.group,
                     ranks, call.seq, call.size_bytes, call.dtype);
}

std::string rank_words(const std::vector<int>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", format_ranks(ranks));
}

bool contains(const std::vector<int>& ranks, int rank) {
  return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
}

bool same_group(const HangCall& a, const HangCall& b) {
  return a.group == b.group && a.ranks == b.ranks;
}

// Where both are the call of one number: whether ranks mean the same by it. A recv meets a send; texts of the
// control plane differ in length.
bool agree(const HangCall& a, const HangCall& b) {
  if (a.peer >= 0 && b.peer >= 0) return a.size_bytes == b.size_bytes;
  if (a.op != b.op || a.site != b.site) return false;
  return a.ranks.empty() || (a.size_bytes == b.size_bytes && a.dtype == b.dtype);
}

// What followed the longest piece of history that equals the calls just before `at`; nullopt: nothing like
// it.
std::optional<size_t> usual_next(const std::vector<std::string>& calls, size_t at) {
  size_t longest = 0, next = 0;
  for (size_t candidate = at; candidate-- > 1;) {
    size_t length = 0;
    while (length < candidate && calls[candidate - 1 - length] == calls[at - 1 - length]) ++length;
    if (length > longest) longest = length, next = candidate;
  }
  return longest == 0 ? std::nullopt : std::optional(next);
}

// Of the calls under way on this rank, waited for or not, the first that is not the usual one at its place: what would
// have been.
std::string usual_instead(const std::vector<Entry>& entries) {
  std::vector<std::string> calls;
  for (const Entry& e : entries) calls.push_back(fmt::format("{} '{}' (group {})", e.op, e.site, e.group));
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].state != FlightRecorder::State::Pending) continue;
    const auto usual = usual_next(calls, i);
    if (usual && calls[*usual] != calls[i]) return calls[*usual];
  }
  return "";
}

bool has_entered(const RankState& state, const HangCall& call) {
  return std::any_of(state.entered.begin(), state.entered.end(), [&](const HangCall& theirs) {
    return same_group(theirs, call) && theirs.seq >= call.seq;
  });
}

// For whom `rank` waits in `call`: those that have not entered it (without an answer: nobody knows), else
// those that have, but wait in nothing: MPI moves data only inside calls.
std::vector<int> waits_for(const HangInput& input, int rank, const HangCall& call) {
  std::vector<int> members = call.ranks, late, idle;
  if (call.peer >= 0) members = {call.peer};
  if (call.ranks.empty()) {
    members.resize(input.states.size());
    std::iota(members.begin(), members.end(), 0);
  }
  for (const int r : members) {
    const auto& state = input.states.at(static_cast<size_t>(r));
    if (r == rank) continue;
    if (!state || !has_entered(*state, call))
      late.push_back(r);
    else if (state->waits.empty())
      idle.push_back(r);
  }
  return late.empty() ? idle : late;
}

// The call that explains why the rank waits: the oldest one that somebody keeps, else the oldest.
const HangCall* wait_of(const HangInput& input, const RankState& state) {
  for (const HangCall& call : state.waits)
    if (!waits_for(input, state.rank, call).empty()) return &call;
  return state.waits.empty() ? nullptr : &state.waits.front();
}

bool different_calls(const HangInput& input) {
  std::vector<const HangCall*> calls;
  for (const auto& state : input.states)
    if (state)
      for (const HangCall& call : state->waits) calls.push_back(&call);
  for (const HangCall* a : calls)
    for (const HangCall* b : calls)
      if (same_group(*a, *b) && a->seq == b->seq && !agree(*a, *b)) return true;
  return false;
}

// For ranks that wait for each other or in different calls: who left the order. Without a history to tell,
// the ranks that most others wait for.
std::vector<int> out_of_order(const HangInput& input) {
  std::vector<int> odd;
  std::map<int, size_t> awaited;
  for (const auto& state : input.states) {
    if (!state) continue;
    if (!state->usual.empty()) odd.push_back(state->rank);
    if (const HangCall* call = wait_of(input, *state))
      for (const int r : waits_for(input, state->rank, *call)) ++awaited[r];
  }
  if (!odd.empty()) return odd;
  size_t most = 0;
  for (const auto& [rank, count] : awaited) most = std::max(most, count);
  for (const auto& [rank, count] : awaited)
    if (count == most) odd.push_back(rank);
  return odd;
}

const HangCall* newest(const std::vector<HangCall>& calls) {
  const auto found = std::min_element(calls.begin(), calls.end(),
                                      [](const HangCall& a, const HangCall& b) { return a.age_s < b.age_s; });
  return found == calls.end() ? nullptr : &*found;
}

// The newest call that others finished together with `rank`.
const HangCall* last_seen(const HangInput& input, int rank) {
  const HangCall* last = nullptr;
  for (const auto& state : input.states)
    if (state)
      for (const HangCall& call : state->finished)
        if ((call.ranks.empty() || contains(call.ranks, rank)) &&
            (last == nullptr || call.age_s < last->age_s))
          last = &call;
  return last;
}

std::string name_of(const HangInput& input, int rank) {
  const RankIdentity& who = input.ranks[static_cast<size_t>(rank)];
  return fmt::format("rank {} (host {}, pid {}{}{})", rank, who.host, who.pid, who.place.empty() ? "" : ", ",
                     who.place);
}

std::vector<std::string> missing_lines(const HangInput& input, int rank) {
  const auto& state = input.states[static_cast<size_t>(rank)];
  const RankIdentity& who = input.ranks[static_cast<size_t>(rank)];
  std::vector<std::string> lines;
  const HangCall* last = state ? newest(state->finished) : last_seen(input, rank);
  const std::string history =
      last == nullptr ? "no call is known to be finished"
                      : fmt::format("its last finished call is {}, {:.1f} s ago", words(*last), last->age_s);
  if (!state)
    lines.push_back(fmt::format("{} {}; {}", name_of(input, rank),
                                who.process.empty() ? "does not answer: killed, stopped, or its host is lost"
                                                    : "does not answer: its process " + who.process,
                                history));
  else if (!state->error.empty())
    lines.push_back(fmt::format("{} ends because of its own error: {}", name_of(input, rank), state->error));
  else if (const HangCall* call = wait_of(input, *state))
    lines.push_back(
        fmt::format("{} waits in {} since {:.1f} s", name_of(input, rank), words(*call), call->age_s));
  else
    lines.push_back(fmt::format("{} is alive, but in no call; {}", name_of(input, rank), history));
  if (state && !state->usual.empty())
    lines.push_back(fmt::format("rank {} skipped {}, which came here in earlier steps", rank, state->usual));
  for (const auto& other : input.states) {  // the first one that waits for it is enough
    const HangCall* call = other ? wait_of(input, *other) : nullptr;
    if (call == nullptr || !contains(waits_for(input, other->rank, *call), rank)) continue;
    const char* how = !state                       ? "has not finished"
                      : has_entered(*state, *call) ? "has entered, but does not go on with"
                                                   : "has not entered";
    lines.push_back(fmt::format("rank {} {} {}", rank, how, words(*call)));
    break;
  }
  return lines;
}

// "ranks 0-2 wait in ...", the largest party first; without the missing ranks.
std::vector<std::string> waiting_lines(const HangInput& input, const std::vector<int>& missing) {
  struct Party {
    std::vector<int> ranks;
    double longest_s = 0;
  };
  std::map<std::string, Party> parties;
  for (const auto& state : input.states) {
    if (!state || contains(missing, state->rank)) continue;
    const HangCall* call = wait_of(input, *state);
    Party& party = parties[call == nullptr ? "" : words(*call)];
    party.ranks.push_back(state->rank);
    if (call != nullptr) party.longest_s = std::max(party.longest_s, call->age_s);
  }
  std::vector<std::pair<std::string, Party>> sorted(parties.begin(), parties.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.ranks.size() > b.second.ranks.size();
  });
  std::vector<std::string> lines;
  for (const auto& [what, party] : sorted)
    lines.push_back(what.empty() ? fmt::format("{}: in no call", rank_words(party.ranks))
                                 : fmt::format("{}: in {} since {:.1f} s", rank_words(party.ranks), what,
                                               party.longest_s));
  return lines;
}

std::string headline(const HangFindings& findings) {
  const std::string who = rank_words(findings.missing);
  const bool one = findings.missing.size() == 1;
  switch (findings.kind) {
    case Kind::Gone:
      return fmt::format("{} {} not answer", who, one ? "does" : "do");
    case Kind::Late:
      return fmt::format("{} {} missing", who, one ? "is" : "are");
    case Kind::OutOfOrder:
      return fmt::format("{} {} out of order: ranks make different calls", who, one ? "is" : "are");
    default:
      return "every rank is in its call, none finishes";
  }
}

std::string advice(const HangInput& input, const HangFindings& findings) {
  const int first = findings.missing.empty() ? 0 : findings.missing[0];
  switch (findings.kind) {
    case Kind::Gone:
      return fmt::format(
          "look at the kernel log of {} for process {} (out of memory is the usual reason) and at "
          "log/rank_{:04d}"
          ".log, then start the run again: it goes on from its last checkpoint",
          input.ranks[static_cast<size_t>(first)].host, input.ranks[static_cast<size_t>(first)].pid, first);
    case Kind::Late:
      return fmt::format(
          "find what rank {} does outside of calls (data, a slow or full disk, a stuck device); "
          "where it is only slow, raise parallel.collective_timeout_s",
          first);
    case Kind::OutOfOrder:
      return "look for settings or files that differ between ranks; if there are none, please report this "
             "page";
    default:
      return "a device, a link or NCCL hangs: look at the kernel logs for device errors (Xid), run hearth "
             "doctor on these hosts, and start the run again";
  }
}

void add_lines(std::string& page, std::string_view label, const std::vector<std::string>& lines) {
  for (size_t i = 0; i < std::min(lines.size(), kLines); ++i)
    page += fmt::format("  {:<9}{}\n", i == 0 ? label : "", lines[i]);
  if (lines.size() > kLines) page += fmt::format("  {:<9}and {} more\n", "", lines.size() - kLines);
}

}  // namespace

RankState rank_state(int rank, const FlightRecorder& recorder) {
  const auto alarm = recorder.alarm();
  const std::vector<Entry> entries = alarm ? alarm->entries : recorder.entries();
  const auto groups = recorder.groups();
  const auto now = FlightRecorder::Clock::now();
  RankState state;
  state.rank = rank;
  if (alarm) state.alarm = alarm->reason;
  std::map<int, HangCall> entered, finished;
  for (const Entry& e : entries) {
    const bool pending = e.state == FlightRecorder::State::Pending;
    const HangCall call{.op = e.op,
                        .site = e.site,
                        .group = e.group,
                        .dtype = std::string(config_name(e.dtype)),
                        .ranks = groups[static_cast<size_t>(e.group_id)],
                        .seq = e.seq,
                        .size_bytes = e.size_bytes,
                        .peer = e.peer,
                        .age_s = std::chrono::duration<double>(now - (pending ? e.begun : e.ended)).count()};
    if (pending && e.held && state.waits.size() < kWaitsKept) state.waits.push_back(call);
    if (e.state == FlightRecorder::State::Done) finished[e.group_id] = call;
    entered[e.group_id] = call;
  }
  for (const auto& [id, call] : entered) state.entered.push_back(call);
  for (const auto& [id, call] : finished) state.finished.push_back(call);
  state.usual = usual_instead(entries);
  return state;
}

std::string to_json(const RankState& state) {
  return nlohmann::json(state).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

RankState parse_rank_state(std::string_view json) {
  try {
    return nlohmann::json::parse(json).get<RankState>();
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::BadInput, "state of a rank: {}", error.what());
  }
}

HangFindings find_missing(const HangInput& input) {
  std::vector<int> gone, missing;
  std::set<int> awaited, excused;
  for (size_t r = 0; r < input.states.size(); ++r) {
    const int rank = static_cast<int>(r);
    const auto& state = input.states[r];
    if (!state || !state->error.empty()) {
      gone.push_back(rank);
      continue;
    }
    for (const HangCall& call : state->waits) {
      const auto ranks = waits_for(input, rank, call);
      awaited.insert(ranks.begin(), ranks.end());
      if (!ranks.empty()) excused.insert(rank);
    }
  }
  if (!gone.empty()) return {Kind::Gone, gone};
  std::set_difference(awaited.begin(), awaited.end(), excused.begin(), excused.end(),
                      std::back_inserter(missing));
  const bool cycle = !awaited.empty() && missing.empty();
  if (cycle || different_calls(input)) return {Kind::OutOfOrder, out_of_order(input)};
  return {missing.empty() ? Kind::Entered : Kind::Late, missing};
}

std::string hang_page(const HangInput& input) {
  const HangFindings findings = find_missing(input);
  std::string page = fmt::format("==== the job does not go on: {} ====\n", headline(findings));
  std::vector<std::string> missing, seen, ranks;
  for (const int r : findings.missing)
    for (auto& line : missing_lines(input, r)) missing.push_back(std::move(line));
  for (const auto& state : input.states)
    if (state && !state->alarm.empty() && seen.empty())
      seen.push_back(fmt::format("rank {}: {}", state->rank, state->alarm));
  for (size_t r = 0; r < input.ranks.size() && input.ranks.size() <= kSmallWorld; ++r)
    ranks.push_back(name_of(input, static_cast<int>(r)) + (input.states[r] ? "" : "  NO ANSWER"));
  add_lines(page, "missing", missing);
  add_lines(page, "waiting", waiting_lines(input, findings.missing));
  add_lines(page, "seen by", seen);
  add_lines(page, "ranks", ranks);
  add_lines(page, "files", {input.folder});
  add_lines(page, "do", {advice(input, findings)});
  return page + "====\n";
}

std::string format_ranks(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", ranks[i]);
    if (last > i) text += fmt::format("{}{}", last == i + 1 ? ", " : "-", ranks[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace hearth
