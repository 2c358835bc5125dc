// The page from made-up states. Ranks of a case are written as what each of them would answer.
#include "parallel/hang_report.h"

#include <fmt/core.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <numeric>
#include <sstream>

#include "base/error.h"

using namespace hearth;
using Kind = HangFindings::Kind;

namespace {

const std::vector<int> kEverybody;  // the group of the control plane

HangCall call(std::string site, std::vector<int> ranks, uint64_t seq, std::string op = "all_reduce") {
  return {.op = std::move(op),
          .site = std::move(site),
          .group = "g",
          .dtype = "bf16",
          .ranks = std::move(ranks),
          .seq = seq,
          .size_bytes = 4096,
          .age_s = 2.0};
}

HangCall transfer(std::string op, int peer, std::vector<int> ranks, uint64_t seq) {
  HangCall made = call("pp.rows", std::move(ranks), seq, std::move(op));
  made.peer = peer;
  return made;
}

RankState waits(int rank, std::vector<HangCall> calls) {
  RankState state;
  state.rank = rank;
  state.waits = state.entered = std::move(calls);
  return state;
}

// In no call; the newest it has finished is `last`.
RankState outside(int rank, const HangCall& last) {
  RankState state;
  state.rank = rank;
  state.entered = state.finished = {last};
  return state;
}

HangInput input_of(std::vector<std::optional<RankState>> states) {
  HangInput input;
  for (size_t r = 0; r < states.size(); ++r)
    input.ranks.push_back({.host = fmt::format("gpu{:02d}", r / 8),
                           .pid = 1000 + static_cast<int64_t>(r),
                           .place = fmt::format("dp {}", r),
                           .process = ""});
  input.states = std::move(states);
  input.folder = "runs/a/.hang";
  return input;
}

std::vector<int> up_to(int n) {
  std::vector<int> ranks(static_cast<size_t>(n));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::vector<int> eight(int first) {
  std::vector<int> ranks(8);
  std::iota(ranks.begin(), ranks.end(), first);
  return ranks;
}

void check_found(const HangInput& input, Kind kind, const std::vector<int>& missing) {
  const HangFindings found = find_missing(input);
  BOOST_CHECK_MESSAGE(found.kind == kind, "kind " << static_cast<int>(found.kind) << " in\n"
                                                  << hang_page(input));
  BOOST_TEST(found.missing == missing, boost::test_tools::per_element());
}

void check_says(const HangInput& input, const std::string& text) {
  const std::string page = hang_page(input);
  BOOST_CHECK_MESSAGE(page.find(text) != std::string::npos, "no '" << text << "' in\n" << page);
}

int lines(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_late_rank_is_named_with_its_last_call) {
  const auto before = call("grad.bucket2", {0, 1, 2}, 4), now = call("grad.bucket3", {0, 1, 2}, 5);
  const auto input = input_of({waits(0, {now}), outside(1, before), waits(2, {now})});
  check_found(input, Kind::Late, {1});
  check_says(input, "==== the job does not go on: rank 1 is missing ====");
  check_says(input,
             "rank 1 (host gpu00, pid 1001, dp 1) is alive, but in no call; its last finished call is "
             "all_reduce 'grad.bucket2' (group g of ranks 0-2, call 4, 4096 bytes bf16), 2.0 s ago");
  check_says(input, "rank 1 has not entered all_reduce 'grad.bucket3'");
  check_says(input, "waiting  ranks 0, 2: in all_reduce 'grad.bucket3'");
  check_says(input, "find what rank 1 does outside of calls");
}

BOOST_AUTO_TEST_CASE(a_rank_that_entered_but_sits_elsewhere_is_late) {
  const auto now = call("grad.bucket3", {0, 1}, 5);
  RankState idle = outside(1, call("grad.bucket2", {0, 1}, 4));
  idle.entered = {now};
  const auto input = input_of({waits(0, {now}), idle});
  check_found(input, Kind::Late, {1});
  check_says(input, "rank 1 has entered, but does not go on with all_reduce 'grad.bucket3'");
}

// Ranks 0 and 1 wait for 2, which waits in another group for 3, which waits for 4.
BOOST_AUTO_TEST_CASE(a_chain_of_waits_is_followed_across_groups) {
  const auto first = call("tp.rows", {0, 1, 2}, 7), second = call("cp.ring", {2, 3}, 3),
             third = call("grad.bucket0", {3, 4}, 9);
  const auto input = input_of({waits(0, {first}), waits(1, {first}), waits(2, {second}), waits(3, {third}),
                               outside(4, call("grad.bucket1", {3, 4}, 8))});
  check_found(input, Kind::Late, {4});
  check_says(input, "ranks 0, 1: in all_reduce 'tp.rows'");
  check_says(input, "rank 2: in all_reduce 'cp.ring'");
}

BOOST_AUTO_TEST_CASE(a_cycle_without_history_names_whom_most_wait_for) {
  // 0 waits for 1 and 1 for 0, in different groups; 2 and 3 wait for 1.
  const auto a = call("a", {0, 1}, 1), b = call("b", {1, 0}, 1), c = call("c", {1, 2, 3}, 1);
  const auto input = input_of({waits(0, {a}), waits(1, {b}), waits(2, {c}), waits(3, {c})});
  check_found(input, Kind::OutOfOrder, {1});
  check_says(input, "rank 1 is out of order: ranks make different calls");
}

BOOST_AUTO_TEST_CASE(a_rank_without_an_answer_is_gone) {
  const auto now = call("grad.bucket3", {0, 1, 2}, 5);
  RankState one = waits(0, {now});
  one.finished = {call("grad.bucket2", {0, 1, 2}, 4)};
  auto input = input_of({one, std::nullopt, waits(2, {now})});
  check_found(input, Kind::Gone, {1});
  check_says(input, "rank 1 does not answer ====");
  check_says(input,
             "does not answer: killed, stopped, or its host is lost; its last finished call is all_reduce "
             "'grad.bucket2'");
  check_says(input, "rank 1 has not finished all_reduce 'grad.bucket3'");
  check_says(input, "rank 1 (host gpu00, pid 1001, dp 1)  NO ANSWER");
  input.ranks[1].process = "has ended";
  check_says(input, "does not answer: its process has ended");
}

BOOST_AUTO_TEST_CASE(an_error_of_its_own_is_told) {
  RankState failed;
  failed.rank = 0;
  failed.error = "shard 7 is torn";
  const auto input = input_of({failed, waits(1, {call("grad.bucket3", {0, 1}, 5)})});
  check_found(input, Kind::Gone, {0});
  check_says(input, "ends because of its own error: shard 7 is torn");
}

BOOST_AUTO_TEST_CASE(history_tells_who_left_the_order) {
  // Rank 1 left out bucket0 and is one call ahead of everybody: the others seem to wait in the right place.
  RankState ahead = waits(1, {call("grad.bucket1", {0, 1, 2}, 5)});
  ahead.usual = "all_reduce 'grad.bucket0' (group g)";
  const auto usual = call("grad.bucket0", {0, 1, 2}, 5);
  const auto input = input_of({waits(0, {usual}), ahead, waits(2, {usual})});
  check_found(input, Kind::OutOfOrder, {1});
  check_says(input, "rank 1 skipped all_reduce 'grad.bucket0' (group g), which came here in earlier steps");
}

// At a first save all ranks do what they never did; rank 2 makes a call of its own and the others wait for
// it.
BOOST_AUTO_TEST_CASE(what_is_new_for_most_ranks_accuses_nobody) {
  std::vector<std::optional<RankState>> states;
  for (int r = 0; r < 4; ++r) {
    states.push_back(waits(r, {call(r == 2 ? "save.of_rank_2" : "save.commit", up_to(4), r == 2 ? 8 : 9)}));
    states.back()->usual = "all_reduce 'grad.bucket0' (group g)";
  }
  const auto two = call("x", {1, 2}, 1);  // so that waits go round: 2 waits for 1
  states[2]->waits.insert(states[2]->waits.begin(), two);
  states[2]->entered.push_back(two);
  check_found(input_of(states), Kind::OutOfOrder, {2});
  BOOST_TEST(hang_page(input_of(states)).find("skipped") == std::string::npos);
  // Half of them is not most.
  states[0]->usual = states[1]->usual = "";
  check_found(input_of(states), Kind::OutOfOrder, {2, 3});
  check_says(input_of(states), "rank 3 skipped all_reduce 'grad.bucket0' (group g)");
}

BOOST_AUTO_TEST_CASE(different_calls_that_nobody_waits_for_accuse_nobody) {
  auto other = call("grad.bucket0", {0, 1}, 5);
  other.size_bytes = 8192;
  const auto input = input_of({waits(0, {call("grad.bucket0", {0, 1}, 5)}), waits(1, {other})});
  check_found(input, Kind::OutOfOrder, {});
  check_says(input, "the job does not go on: ranks make different calls ====");
  check_says(input, "rank 1: in all_reduce 'grad.bucket0' (group g of ranks 0, 1, call 5, 8192 bytes bf16)");
}

BOOST_AUTO_TEST_CASE(texts_of_the_control_plane_may_differ_in_length) {
  auto other = call("checkpoint.commit", kEverybody, 5, "all_gather");
  other.size_bytes = 1;
  check_found(
      input_of({waits(0, {call("checkpoint.commit", kEverybody, 5, "all_gather")}), waits(1, {other})}),
      Kind::Entered, {});
}

BOOST_AUTO_TEST_CASE(everybody_in_the_call_means_a_device_or_a_link) {
  const auto now = call("grad.bucket3", {0, 1}, 5);
  const auto input = input_of({waits(0, {now}), waits(1, {now})});
  check_found(input, Kind::Entered, {});
  check_says(input, "every rank is in its call, none finishes");
  check_says(input, "a device, a link or NCCL hangs");
}

BOOST_AUTO_TEST_CASE(a_pipeline_is_followed_to_the_stage_that_is_late) {
  // 0 sends to 1, which receives from 0's call before... 2 receives from 1; 1 sits outside of calls.
  const auto input =
      input_of({waits(0, {transfer("send", 1, {0, 1}, 3)}), outside(1, transfer("recv", 0, {0, 1}, 2)),
                waits(2, {transfer("recv", 1, {1, 2}, 2)})});
  check_found(input, Kind::Late, {1});
  check_says(input, "send 'pp.rows' to rank 1 (group g of ranks 0, 1, call 3");
  check_says(input, "recv 'pp.rows' from rank 1 (group g of ranks 1, 2, call 2");
}

BOOST_AUTO_TEST_CASE(a_send_and_its_recv_are_one_call) {
  check_found(
      input_of({waits(0, {transfer("send", 1, {0, 1}, 3)}), waits(1, {transfer("recv", 0, {0, 1}, 3)})}),
      Kind::Entered, {});
  auto shorter = transfer("recv", 0, {0, 1}, 3);
  shorter.size_bytes = 64;
  check_found(input_of({waits(0, {transfer("send", 1, {0, 1}, 3)}), waits(1, {shorter})}), Kind::OutOfOrder,
              {});
}

BOOST_AUTO_TEST_CASE(of_many_held_calls_the_one_that_somebody_keeps_explains) {
  // Over NCCL the host runs ahead, by as many calls as it likes.
  std::vector<HangCall> calls;
  for (uint64_t seq = 0; seq <= 20; ++seq)
    calls.push_back(call(fmt::format("grad.bucket{}", seq), {0, 1, 2}, seq));
  const auto holds = [&](int rank, int first, int last) {
    RankState made = waits(rank, {calls.begin() + first, calls.begin() + last + 1});
    made.entered = {made.waits.back()};
    return made;
  };
  // The host of rank 2 has come to call 12 and stays there, whatever its device does with 10 to 12.
  auto input = input_of({holds(0, 10, 20), holds(1, 10, 20), holds(2, 10, 12)});
  check_found(input, Kind::Late, {2});
  check_says(input, "rank 2 has not entered all_reduce 'grad.bucket13'");
  check_says(input, "ranks 0, 1: in all_reduce 'grad.bucket13'");
  // All it has posted is done.
  input = input_of({holds(0, 13, 20), holds(1, 13, 20), outside(2, calls[12])});
  check_found(input, Kind::Late, {2});
  check_says(input, "rank 2 has not entered all_reduce 'grad.bucket13'");
  check_found(input_of({holds(0, 10, 20), holds(1, 10, 20), holds(2, 10, 20)}), Kind::Entered, {});
}

BOOST_AUTO_TEST_CASE(a_large_job_has_no_line_per_rank) {
  for (const int ranks : {16, 17}) {
    const auto now = call("grad.bucket3", up_to(ranks), 5);
    std::vector<std::optional<RankState>> states;
    for (int r = 0; r < ranks; ++r) states.push_back(waits(r, {now}));
    states[3] = outside(3, call("grad.bucket2", up_to(ranks), 4));
    const std::string page = hang_page(input_of(states));
    BOOST_TEST((page.find("rank 7 (host gpu00, pid 1007") != std::string::npos) == (ranks == 16));
    BOOST_TEST(lines(page) == (ranks == 16 ? 7 + 16 : 7));
  }
}

BOOST_AUTO_TEST_CASE(a_page_stays_a_page_when_hundreds_are_missing) {
  std::vector<std::optional<RankState>> states(300);
  states[0] = waits(0, {call("grad.bucket3", up_to(300), 5)});
  const std::string page = hang_page(input_of(states));
  BOOST_TEST(page.find("ranks 1-299 do not answer") != std::string::npos);
  BOOST_TEST(page.find("and 293 more") != std::string::npos);  // two lines for each of the first six
  BOOST_TEST(lines(page) < 25);
}

BOOST_AUTO_TEST_CASE(ranks_are_written_as_ranges) {
  BOOST_TEST(format_ranks({}) == "");
  BOOST_TEST(format_ranks({4}) == "4");
  BOOST_TEST(format_ranks({0, 1, 3, 4, 5, 9}) == "0, 1, 3-5, 9");
}

BOOST_AUTO_TEST_CASE(a_state_survives_its_json) {
  RankState state = waits(3, {call("grad.bucket3", {0, 3}, 5), transfer("send", 7, {3, 7}, 2),
                              call("checkpoint.commit", kEverybody, 8, "all_gather")});
  state.finished = {call("a \"name\"\n", {0, 3}, 4)};
  state.alarm = "not finished after 2.0 s";
  state.error = "torn";
  state.usual = "all_reduce 'x'";
  BOOST_CHECK(parse_rank_state(to_json(state)) == state);
  BOOST_CHECK(parse_rank_state(to_json(RankState{})) == RankState{});
  state.error = "no text: \xff";  // the state must come through all the same
  BOOST_TEST(parse_rank_state(to_json(state)).waits.size() == 3u);
}

BOOST_AUTO_TEST_CASE(the_ranks_of_a_group_are_written_once) {
  std::vector<HangCall> held(64, call("grad.bucket3", up_to(512), 5));
  BOOST_TEST(to_json(waits(0, held)).size() < 40000u);
}

BOOST_AUTO_TEST_CASE(bad_json_is_refused) {
  const std::string good = to_json(waits(1, {call("grad.bucket3", {0, 1}, 5)}));
  const auto refused = [](const std::string& text) {
    BOOST_CHECK_EXCEPTION(parse_rank_state(text), Error,
                          [](const Error& error) { return error.kind() == ErrorKind::BadInput; });
  };
  for (const char* text : {"", "{", "[]", "null", "{}", "\"rank\"", "{\"rank\":\"x\"}"}) refused(text);
  for (size_t length = 0; length < good.size(); ++length) refused(good.substr(0, length));
  const auto with = [&](const std::string& part, const std::string& other) {
    std::string text = good;
    BOOST_TEST_REQUIRE(text.find(part) != std::string::npos);
    return text.replace(text.find(part), part.size(), other);
  };
  refused(with("\"of\":0", "\"of\":1"));
  refused(with("\"of\":0", "\"of\":-1"));
  refused(with("\"groups\":[[0,1]]", "\"groups\":[[\"a\"]]"));
  refused(with("\"finished\":[]", "\"finished\":7"));
}

// A state of another run names ranks that this one does not have.
BOOST_AUTO_TEST_CASE(ranks_beyond_the_job_are_ignored) {
  check_found(
      input_of({waits(0, {call("x", {-5, 0, 1, 99}, 5)}), waits(1, {transfer("send", 99, {1, 99}, 2)})}),
      Kind::Late, {1});
}

// 512 ranks wait in 64 calls of all of them, and 64 more each in a group of its own size; one rank is late.
// The limit is there to catch a square (minutes), not to measure: see the message for the time.
BOOST_AUTO_TEST_CASE(the_page_of_512_ranks_with_64_waits_is_quick) {
  constexpr int kRanks = 512;
  for (const bool scattered : {false, true}) {
    std::vector<std::optional<RankState>> states;
    for (int r = 0; r < kRanks; ++r) {
      std::vector<HangCall> held;
      for (uint64_t seq = 0; seq < 64; ++seq) {
        // Scattered: every rank is at other numbers, so that no two share a call.
        held.push_back(
            call("grad.bucket", up_to(kRanks), scattered ? static_cast<uint64_t>(r) * 64 + seq : seq));
        if (seq % 8 == 0) held.push_back(call("tp.rows", eight(r / 8 * 8), seq));
      }
      states.push_back(waits(r, held));
    }
    states[77] = outside(77, call("grad.bucket", up_to(kRanks), 0));
    const auto input = input_of(states);
    const auto begun = std::chrono::steady_clock::now();
    const std::string page = hang_page(input);
    const std::chrono::duration<double> page_s = std::chrono::steady_clock::now() - begun;
    std::vector<std::string> files;
    for (const auto& state : states) files.push_back(to_json(*state));
    const auto written = std::chrono::steady_clock::now();
    for (const auto& text : files) parse_rank_state(text);
    const std::chrono::duration<double> parse_s = std::chrono::steady_clock::now() - written;
    BOOST_TEST_MESSAGE(fmt::format("page of 512 ranks{}: {:.3f} s; reading 512 states of {} bytes: {:.3f} s",
                                   scattered ? ", no two in one call" : "", page_s.count(), files[0].size(),
                                   parse_s.count()));
    BOOST_TEST(page_s.count() < 30);
    BOOST_TEST(page.find("rank 77 is missing") != std::string::npos);
    BOOST_TEST(lines(page) < 25);
  }
}

BOOST_AUTO_TEST_CASE(the_usual_call_is_found_in_a_long_history) {
  FlightRecorder recorder;
  uint64_t seq = 0;
  const auto begin = [&](std::string_view site) {
    return recorder.begin({.op = "all_reduce", .site = site, .group = "dp", .seq = ++seq, .size_bytes = 64});
  };
  for (int step = 0; step < 20; ++step)
    for (const char* site : {"a", "b", "a", "c"}) recorder.end(begin(site));
  for (const char* site : {"a", "b", "a"}) recorder.end(begin(site));
  recorder.hold(begin("a"));  // c is left out
  BOOST_TEST(rank_state(0, recorder).usual == "all_reduce 'c' (group dp)");
  // One call over and over, all of the ring under way: the history is searched for each of them.
  for (int i = 0; i < 4000; ++i) begin("same");
  const auto begun = std::chrono::steady_clock::now();
  BOOST_TEST(rank_state(0, recorder).usual == "");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  BOOST_TEST_MESSAGE(fmt::format("state of a rank with 2048 calls under way: {:.3f} s", took.count()));
  BOOST_TEST(took.count() < 30);
}
