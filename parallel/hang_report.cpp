#include "parallel/hang_report.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "parallel/hang_index.h"

namespace hearth {
namespace {

using Entry = FlightRecorder::Entry;
using Kind = HangFindings::Kind;

constexpr size_t kWaitsKept = 64;   // over NCCL the host runs ahead by many calls
constexpr size_t kLines = 12;       // of one kind on the page
constexpr size_t kSmallWorld = 16;  // up to here every rank has its line
// So many equal calls before one make its place known; a step of the largest models has some hundred.
constexpr size_t kContext = 512;

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

// What followed the longest piece of history that equals the calls just before `at`, the newest such piece;
// nullopt: nothing like it.
std::optional<size_t> usual_next(const std::vector<size_t>& calls, size_t at) {
  size_t longest = 0, next = 0;
  for (size_t candidate = at; candidate-- > 1 && longest < kContext;) {
    size_t length = 0;
    while (length < std::min(candidate, kContext) && calls[candidate - 1 - length] == calls[at - 1 - length])
      ++length;
    if (length > longest) longest = length, next = candidate;
  }
  return longest == 0 ? std::nullopt : std::optional(next);
}

// Of the calls under way on this rank, waited for or not, the first that is not the usual one at its place:
// what would have been.
std::string usual_instead(const std::vector<Entry>& entries) {
  std::map<std::string, size_t> ids;  // numbers compare faster than texts
  std::vector<std::string> names;
  std::vector<size_t> calls;
  for (const Entry& e : entries) {
    const auto [at, is_new] =
        ids.try_emplace(fmt::format("{} '{}' (group {})", e.op, e.site, e.group), ids.size());
    if (is_new) names.push_back(at->first);
    calls.push_back(at->second);
  }
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].state != FlightRecorder::State::Pending) continue;
    const auto usual = usual_next(calls, i);
    if (usual && calls[*usual] != calls[i]) return names[calls[*usual]];
  }
  return "";
}

// Ranks at another place than in earlier steps. Where most are, as at a first validation or save, the place
// is new for the job and says nothing.
std::vector<int> odd_ranks(const HangInput& input) {
  std::vector<int> odd;
  size_t answers = 0;
  for (size_t r = 0; r < input.states.size(); ++r) {
    if (!input.states[r]) continue;
    ++answers;
    if (!input.states[r]->usual.empty()) odd.push_back(static_cast<int>(r));
  }
  return 2 * odd.size() > answers ? std::vector<int>{} : odd;
}

// For ranks that wait for each other or in different calls: who left the order. Without a history to tell,
// the ranks that most others wait for; none where nobody waits for anyone.
std::vector<int> out_of_order(const HangInput& input, const WaitIndex& index) {
  std::vector<int> odd = odd_ranks(input);
  if (!odd.empty()) return odd;
  std::map<int, size_t> awaited;
  for (size_t r = 0; r < input.states.size(); ++r)
    if (const auto* wait = index.reason(static_cast<int>(r)))
      for (const int other : index.for_whom(*wait)) ++awaited[other];
  size_t most = 0;
  for (const auto& [rank, count] : awaited) most = std::max(most, count);
  for (const auto& [rank, count] : awaited)
    if (count == most) odd.push_back(rank);
  return odd;
}

HangFindings find_missing(const HangInput& input, const WaitIndex& index) {
  std::vector<int> gone, missing;
  std::vector<bool> awaited(input.states.size()), excused(input.states.size());
  for (size_t r = 0; r < input.states.size(); ++r) {
    if (!input.states[r] || !input.states[r]->error.empty()) gone.push_back(static_cast<int>(r));
    for (const auto& wait : index.waits(static_cast<int>(r)))
      excused[r] = excused[r] || !index.for_whom(wait).empty();
  }
  if (!gone.empty()) return {Kind::Gone, gone};
  for (const auto& ranks : index.all_awaited())
    for (const int r : ranks) awaited[static_cast<size_t>(r)] = true;
  bool anyone = false;
  for (size_t r = 0; r < awaited.size(); ++r) {
    anyone = anyone || awaited[r];
    if (awaited[r] && !excused[r]) missing.push_back(static_cast<int>(r));
  }
  const bool cycle = anyone && missing.empty();
  if (cycle || index.different_calls()) return {Kind::OutOfOrder, out_of_order(input, index)};
  return {missing.empty() ? Kind::Entered : Kind::Late, missing};
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

std::vector<std::string> missing_lines(const HangInput& input, const WaitIndex& index, int rank) {
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
  else if (const auto* wait = index.reason(rank))
    lines.push_back(fmt::format("{} waits in {} since {:.1f} s", name_of(input, rank), words(*wait->call),
                                wait->call->age_s));
  else
    lines.push_back(fmt::format("{} is alive, but in no call; {}", name_of(input, rank), history));
  if (state && contains(odd_ranks(input), rank))
    lines.push_back(fmt::format("rank {} skipped {}, which came here in earlier steps", rank, state->usual));
  for (size_t r = 0; r < input.states.size(); ++r) {  // the first one that waits for it is enough
    const auto* wait = index.reason(static_cast<int>(r));
    if (wait == nullptr || !contains(index.for_whom(*wait), rank)) continue;
    const char* how = !state                           ? "has not finished"
                      : index.has_entered(rank, *wait) ? "has entered, but does not go on with"
                                                       : "has not entered";
    lines.push_back(fmt::format("rank {} {} {}", rank, how, words(*wait->call)));
    break;
  }
  return lines;
}

// "ranks 0-2 wait in ...", the largest party first; without the missing ranks.
std::vector<std::string> waiting_lines(const HangInput& input, const WaitIndex& index,
                                       const std::vector<int>& missing) {
  struct Party {
    std::vector<int> ranks;
    const HangCall* call = nullptr;
    double longest_s = 0;
  };
  std::map<std::string, Party> parties;
  for (size_t r = 0; r < input.states.size(); ++r) {
    const int rank = static_cast<int>(r);
    if (!input.states[r] || std::binary_search(missing.begin(), missing.end(), rank)) continue;
    const auto* wait = index.reason(rank);
    // The ranks of the group, of which there may be hundreds, are spelled once per party.
    const HangCall* call = wait == nullptr ? nullptr : wait->call;
    Party& party =
        parties[call == nullptr ? ""
                                : fmt::format("{} {} {} {} {} {} {}", wait->group, call->seq, call->peer,
                                              call->size_bytes, call->dtype, call->op, call->site)];
    party.ranks.push_back(rank);
    party.call = call;
    if (call != nullptr) party.longest_s = std::max(party.longest_s, call->age_s);
  }
  std::vector<Party> sorted;
  for (auto& [what, party] : parties) sorted.push_back(std::move(party));
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Party& a, const Party& b) { return a.ranks.size() > b.ranks.size(); });
  std::vector<std::string> lines;
  for (const Party& party : sorted) {
    if (lines.size() == kLines) break;
    lines.push_back(party.call == nullptr ? fmt::format("{}: in no call", rank_words(party.ranks))
                                          : fmt::format("{}: in {} since {:.1f} s", rank_words(party.ranks),
                                                        words(*party.call), party.longest_s));
  }
  if (sorted.size() > kLines) lines.push_back(fmt::format("and {} more", sorted.size() - kLines));
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
      if (findings.missing.empty()) return "ranks make different calls";
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

// Lines of as many missing ranks as there is room for; the headline names them all.
std::vector<std::string> all_missing_lines(const HangInput& input, const WaitIndex& index,
                                           const std::vector<int>& missing) {
  std::vector<std::string> lines;
  size_t shown = 0;
  for (; shown < missing.size() && lines.size() < kLines; ++shown)
    for (auto& line : missing_lines(input, index, missing[shown])) lines.push_back(std::move(line));
  if (shown < missing.size()) lines.push_back(fmt::format("and {} more", missing.size() - shown));
  return lines;
}

void add_lines(std::string& page, std::string_view label, const std::vector<std::string>& lines) {
  for (size_t i = 0; i < lines.size(); ++i) page += fmt::format("  {:<9}{}\n", i == 0 ? label : "", lines[i]);
}

using Groups = std::vector<std::vector<int>>;

// A call of a group names it by its index in `groups`: 64 calls would carry the group's 512 ranks each.
nlohmann::json calls_json(const std::vector<HangCall>& calls, Groups& groups) {
  auto out = nlohmann::json::array();
  for (const HangCall& call : calls) {
    const auto of = std::find(groups.begin(), groups.end(), call.ranks);
    const auto index = of - groups.begin();
    if (of == groups.end()) groups.push_back(call.ranks);
    out.push_back({{"op", call.op},
                   {"site", call.site},
                   {"group", call.group},
                   {"of", index},
                   {"seq", call.seq},
                   {"size_bytes", call.size_bytes},
                   {"dtype", call.dtype},
                   {"peer", call.peer},
                   {"age_s", call.age_s}});
  }
  return out;
}

std::vector<HangCall> parse_calls(const nlohmann::json& list, const Groups& groups) {
  HEARTH_CHECK(list.is_array(), BadInput, "state of a rank: calls are not a list");
  std::vector<HangCall> calls;
  for (const auto& one : list) {
    const auto of = one.at("of").get<size_t>();
    HEARTH_CHECK(of < groups.size(), BadInput, "state of a rank: group {} of {}", of, groups.size());
    calls.push_back({.op = one.at("op").get<std::string>(),
                     .site = one.at("site").get<std::string>(),
                     .group = one.at("group").get<std::string>(),
                     .dtype = one.at("dtype").get<std::string>(),
                     .ranks = groups[of],
                     .seq = one.at("seq").get<uint64_t>(),
                     .size_bytes = one.at("size_bytes").get<int64_t>(),
                     .peer = one.at("peer").get<int>(),
                     .age_s = one.at("age_s").get<double>()});
  }
  return calls;
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
  Groups groups;
  nlohmann::json json = {{"rank", state.rank},
                         {"alarm", state.alarm},
                         {"error", state.error},
                         {"waits", calls_json(state.waits, groups)},
                         {"entered", calls_json(state.entered, groups)},
                         {"finished", calls_json(state.finished, groups)},
                         {"usual", state.usual}};
  json["groups"] = groups;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

RankState parse_rank_state(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    const auto groups = json.at("groups").get<Groups>();
    return {.rank = json.at("rank").get<int>(),
            .alarm = json.at("alarm").get<std::string>(),
            .error = json.at("error").get<std::string>(),
            .waits = parse_calls(json.at("waits"), groups),
            .entered = parse_calls(json.at("entered"), groups),
            .finished = parse_calls(json.at("finished"), groups),
            .usual = json.at("usual").get<std::string>()};
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::BadInput, "state of a rank: {}", error.what());
  }
}

HangFindings find_missing(const HangInput& input) {
  return find_missing(input, WaitIndex(input));
}

std::string hang_page(const HangInput& input) {
  const WaitIndex index(input);
  const HangFindings findings = find_missing(input, index);
  std::string page = fmt::format("==== the job does not go on: {} ====\n", headline(findings));
  std::vector<std::string> seen, ranks;
  for (const auto& state : input.states)
    if (state && !state->alarm.empty() && seen.empty())
      seen.push_back(fmt::format("rank {}: {}", state->rank, state->alarm));
  for (size_t r = 0; r < input.ranks.size() && input.ranks.size() <= kSmallWorld; ++r)
    ranks.push_back(name_of(input, static_cast<int>(r)) + (input.states[r] ? "" : "  NO ANSWER"));
  add_lines(page, "missing", all_missing_lines(input, index, findings.missing));
  add_lines(page, "waiting", waiting_lines(input, index, findings.missing));
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
