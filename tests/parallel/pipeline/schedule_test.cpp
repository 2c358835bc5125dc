// Every kind over a sweep of counts: the lists are complete, run to their end, and their channels agree;
// broken lists are refused with the rule that they break.
#include "parallel/pipeline/schedule.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <set>

#include "base/error.h"

using namespace hearth;

namespace {

// One row per kind; a new kind needs one more, or every_kind_has_a_row fails.
struct KindRow {
  ScheduleKind kind;
  std::string_view name;
  std::vector<int> chunks;
  std::function<bool(int stages, int micros)> allowed;
};
const std::vector<KindRow> kKinds{
    {ScheduleKind::OneFOneB, "1f1b", {1}, [](int, int) { return true; }},
    {ScheduleKind::Interleaved, "interleaved", {2, 3, 4}, [](int p, int m) { return m % p == 0; }},
    {ScheduleKind::ZbH1, "zb_h1", {1}, [](int, int) { return true; }},
    {ScheduleKind::Zbv, "zbv", {2}, [](int, int) { return true; }},
    {ScheduleKind::DualPipeV, "dualpipev", {2}, [](int p, int m) { return m >= 2 * p; }},
};

template <class F>
void for_each_schedule(int max_stages, F f) {
  for (const KindRow& row : kKinds)
    for (int stages = 1; stages <= max_stages; ++stages)
      for (const int chunks : row.chunks)
        for (int micros = 1; micros <= 3 * stages + 1; ++micros)
          if (row.allowed(stages, micros)) f(make_schedule(row.kind, stages, chunks, micros));
}

bool is_config_error(const Error& e) {
  return e.kind() == ErrorKind::Config;
}

size_t count(const PipelineSchedule& schedule, ActionKind kind) {
  size_t total = 0;
  for (const auto& list : schedule.ranks)
    total += static_cast<size_t>(
        std::count_if(list.begin(), list.end(), [&](const Action& a) { return a.kind == kind; }));
  return total;
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_kind_has_a_row) {
  std::vector<ScheduleKind> rows;
  for (const KindRow& row : kKinds) rows.push_back(row.kind);
  BOOST_CHECK(rows == schedule_kinds());
}

BOOST_AUTO_TEST_CASE(names_go_both_ways) {
  for (const KindRow& row : kKinds) {
    BOOST_TEST(config_name(row.kind) == row.name);
    BOOST_CHECK(schedule_kind_from_config(row.name) == row.kind);
    BOOST_TEST(implied_chunks(row.kind) == (row.chunks.size() == 1 ? row.chunks[0] : 0));
  }
  BOOST_CHECK_EXCEPTION(schedule_kind_from_config("2f2b"), Error, is_config_error);
}

BOOST_AUTO_TEST_CASE(virtual_stages_are_a_bijection) {
  for_each_schedule(8, [](const PipelineSchedule& s) {
    std::set<int> seen;
    for (int rank = 0; rank < s.stages; ++rank)
      for (int chunk = 0; chunk < s.chunks; ++chunk) {
        const int stage = s.virtual_stage(rank, chunk);
        BOOST_REQUIRE((s.place(stage) == PipelineSchedule::Place{rank, chunk}));
        seen.insert(stage);
      }
    BOOST_REQUIRE(static_cast<int>(seen.size()) == s.virtual_stages() && *seen.begin() == 0 &&
                  *seen.rbegin() == s.virtual_stages() - 1);
  });
  const auto v = make_schedule(ScheduleKind::Zbv, 4, 2, 4);
  BOOST_TEST(v.virtual_stage(0, 1) == 7);
  BOOST_TEST(v.virtual_stage(3, 1) == 4);
  BOOST_TEST(make_schedule(ScheduleKind::Interleaved, 4, 2, 4).virtual_stage(1, 1) == 5);
}

BOOST_AUTO_TEST_CASE(every_list_is_right) {
  int schedules = 0;
  for_each_schedule(8, [&](const PipelineSchedule& s) {
    BOOST_REQUIRE_NO_THROW(check_schedule(s));
    BOOST_REQUIRE_NO_THROW(check_schedule(with_transfers(s)));
    ++schedules;
  });
  BOOST_TEST(schedules > 400);
}

BOOST_AUTO_TEST_CASE(counts_that_do_not_fit_are_refused) {
  for (const KindRow& row : kKinds)
    for (int stages = 1; stages <= 6; ++stages)
      for (int chunks = 0; chunks <= 4; ++chunks)
        for (int micros = 0; micros <= 13; ++micros) {
          const bool fits = std::find(row.chunks.begin(), row.chunks.end(), chunks) != row.chunks.end() &&
                            micros >= 1 && row.allowed(stages, micros);
          if (fits) continue;
          BOOST_REQUIRE_EXCEPTION(make_schedule(row.kind, stages, chunks, micros), Error, is_config_error);
        }
  BOOST_CHECK_EXCEPTION(make_schedule(ScheduleKind::OneFOneB, 0, 1, 1), Error, is_config_error);
}

BOOST_AUTO_TEST_CASE(transfers_are_those_between_ranks) {
  for_each_schedule(5, [](const PipelineSchedule& s) {
    size_t hops = 0;  // neighbours in model order on different ranks
    for (int stage = 0; stage + 1 < s.virtual_stages(); ++stage)
      hops += s.place(stage).rank != s.place(stage + 1).rank ? 1 : 0;
    const auto with = with_transfers(s);
    for (const auto kind : {ActionKind::SendForward, ActionKind::RecvForward, ActionKind::SendBackward,
                            ActionKind::RecvBackward})
      BOOST_REQUIRE(count(with, kind) == hops * static_cast<size_t>(s.micros));
    auto stripped = with;
    for (auto& list : stripped.ranks) std::erase_if(list, is_transfer);
    BOOST_REQUIRE(stripped == s);
  });
}

namespace {

// FNV-1a over 32-bit words.
uint64_t digest(const PipelineSchedule& schedule) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](uint32_t word) { hash = (hash ^ word) * 0x100000001b3; };
  for (const auto& list : schedule.ranks) {
    add(static_cast<uint32_t>(list.size()));
    for (const Action& a : list)
      for (const int word : {static_cast<int>(a.kind), a.chunk, a.micro, a.backward_chunk, a.backward_micro})
        add(static_cast<uint32_t>(word));
  }
  return hash;
}

}  // namespace

// The lists of with_transfers as a scan of all gaps for each transfer wrote them, the two large ones too. A
// change of a published list, or of where its transfers go, changes its digest: then print the new ones.
BOOST_AUTO_TEST_CASE(transfers_stand_where_a_plain_scan_puts_them) {
  using enum ScheduleKind;
  struct Row {
    ScheduleKind kind;
    int stages, chunks, micros;
    uint64_t digest;
  };
  for (const Row& row : {
           Row{OneFOneB, 8, 1, 29, 0x2825b60bacb3fef5},
           Row{Interleaved, 4, 2, 12, 0x97276914f937fa5f},
           Row{Interleaved, 5, 3, 15, 0x856835b6d6a3827c},
           Row{Interleaved, 16, 8, 1024, 0x909dc86fe4464ceb},
           Row{ZbH1, 8, 1, 29, 0x30b4bb134f047ded},
           Row{Zbv, 3, 2, 4, 0xd762055e35025c6f},
           Row{Zbv, 7, 2, 20, 0x2440eb238de934bb},
           Row{DualPipeV, 1, 2, 5, 0x5e5f192ba0ec4a76},
           Row{DualPipeV, 8, 2, 512, 0x695e3710da4f7057},
       }) {
    const auto schedule = with_transfers(make_schedule(row.kind, row.stages, row.chunks, row.micros));
    BOOST_TEST(digest(schedule) == row.digest,
               fmt::format("{} stages {} chunks {} micros {}: {:#018x}", config_name(row.kind), row.stages,
                           row.chunks, row.micros, digest(schedule)));
    BOOST_REQUIRE_NO_THROW(check_schedule(schedule));
  }
}

// A recv posted so far ahead that its rank, should it stand still there, never sends what its peer needs
// first.
BOOST_AUTO_TEST_CASE(transfers_that_could_hold_up_each_other_are_refused) {
  using enum ActionKind;
  PipelineSchedule s = with_transfers(make_schedule(ScheduleKind::OneFOneB, 2, 1, 2));
  check_schedule(s);
  s.ranks[0] = {{Forward, 0, 0},     {SendForward, 0, 0}, {RecvBackward, 0, 0}, {Forward, 0, 1},
                {SendForward, 0, 1}, {Backward, 0, 0},    {RecvBackward, 0, 1}, {Backward, 0, 1}};
  s.ranks[1] = {{RecvForward, 0, 0},  {RecvForward, 0, 1}, {Forward, 0, 0},  {Backward, 0, 0},
                {SendBackward, 0, 0}, {Forward, 0, 1},     {Backward, 0, 1}, {SendBackward, 0, 1}};
  BOOST_CHECK_EXCEPTION(check_schedule(s), Error, [](const Error& e) {
    return std::string(e.what()).find("would wait forever where transfers hold up") != std::string::npos;
  });
}

BOOST_AUTO_TEST_CASE(published_lists_of_small_pipelines) {
  using enum ActionKind;
  const auto f = make_schedule(ScheduleKind::OneFOneB, 2, 1, 3);
  BOOST_CHECK((f.ranks[0] == std::vector<Action>{{Forward, 0, 0},
                                                 {Forward, 0, 1},
                                                 {Backward, 0, 0},
                                                 {Forward, 0, 2},
                                                 {Backward, 0, 1},
                                                 {Backward, 0, 2}}));
  BOOST_CHECK((f.ranks[1] == std::vector<Action>{{Forward, 0, 0},
                                                 {Backward, 0, 0},
                                                 {Forward, 0, 1},
                                                 {Backward, 0, 1},
                                                 {Forward, 0, 2},
                                                 {Backward, 0, 2}}));
  const auto z = make_schedule(ScheduleKind::ZbH1, 2, 1, 2);
  BOOST_CHECK((z.ranks[1] == std::vector<Action>{{Forward, 0, 0},
                                                 {BackwardInput, 0, 0},
                                                 {Forward, 0, 1},
                                                 {BackwardInput, 0, 1},
                                                 {BackwardWeight, 0, 0},
                                                 {BackwardWeight, 0, 1}}));
  const auto i = make_schedule(ScheduleKind::Interleaved, 2, 2, 2);
  BOOST_CHECK((i.ranks[1] == std::vector<Action>{{Forward, 0, 0},
                                                 {Forward, 0, 1},
                                                 {Forward, 1, 0},
                                                 {Backward, 1, 0},
                                                 {Forward, 1, 1},
                                                 {Backward, 1, 1},
                                                 {Backward, 0, 0},
                                                 {Backward, 0, 1}}));
}

namespace {

// Expects that `schedule`, once `damage` is done, is refused with an Internal error that has `rule` in it.
void refused(PipelineSchedule schedule, const std::string& rule,
             const std::function<void(PipelineSchedule&)>& damage) {
  damage(schedule);
  BOOST_CHECK_EXCEPTION(check_schedule(schedule), Error, [&](const Error& e) {
    BOOST_TEST_MESSAGE(e.message());
    BOOST_TEST(e.message().find(rule) != std::string::npos,
               "'" << e.message() << "' does not say '" << rule << "'");
    return e.kind() == ErrorKind::Internal;
  });
}

size_t find(const std::vector<Action>& list, const Action& action) {
  const auto at = std::find(list.begin(), list.end(), action);
  BOOST_REQUIRE(at != list.end());
  return static_cast<size_t>(at - list.begin());
}
void erase(std::vector<Action>& list, const Action& action) {
  list.erase(list.begin() + static_cast<std::ptrdiff_t>(find(list, action)));
}
void swap(std::vector<Action>& list, const Action& a, const Action& b) {
  std::swap(list[find(list, a)], list[find(list, b)]);
}

}  // namespace

BOOST_AUTO_TEST_CASE(broken_compute_lists_are_refused) {
  using enum ActionKind;
  const auto plain = make_schedule(ScheduleKind::OneFOneB, 4, 1, 6);
  const auto split = make_schedule(ScheduleKind::ZbH1, 4, 1, 6);
  const auto dual = make_schedule(ScheduleKind::DualPipeV, 2, 2, 5);
  refused(plain, "3 lists for 4 stages", [](auto& s) { s.ranks.pop_back(); });
  refused(plain, "no such chunk", [](auto& s) { s.ranks[1][0].micro = 6; });
  refused(plain, "no such chunk", [](auto& s) { s.ranks[1][0].chunk = 1; });
  refused(plain, "second pair", [](auto& s) { s.ranks[1][0].backward_micro = 0; });
  refused(dual, "backward half", [](auto& s) {
    for (auto& a : s.ranks[0])
      if (a.kind == ForwardBackward) a.backward_micro = 9;
  });
  refused(plain, "Backward is missing", [](auto& s) { s.ranks[0].pop_back(); });
  refused(split, "BackwardWeight is missing", [](auto& s) { s.ranks[2].pop_back(); });
  refused(plain, "a second Forward", [](auto& s) { s.ranks[0].push_back({Forward, 0, 2}); });
  refused(plain, "a second backward", [](auto& s) { s.ranks[3].push_back({Backward, 0, 2}); });
  refused(plain, "a second backward", [](auto& s) { s.ranks[3].push_back({BackwardInput, 0, 2}); });
  refused(plain, "does not follow its BackwardInput", [](auto& s) {
    s.ranks[3].push_back({BackwardWeight, 0, 2});
  });
  refused(split, "does not follow its BackwardInput", [](auto& s) {
    swap(s.ranks[1], {BackwardInput, 0, 3}, {BackwardWeight, 0, 3});
  });
  refused(plain, "a backward before its Forward", [](auto& s) {
    swap(s.ranks[3], {Forward, 0, 0}, {Backward, 0, 0});
  });
  refused(plain, "deadlock", [](auto& s) { erase(s.ranks[1], {Forward, 0, 4}); });
  // Rank 0 wants the gradient of micro 0 before it starts micro 0 of another: rank 1 still waits for its
  // forward.
  refused(plain, "deadlock", [](auto& s) {
    s.ranks[3].clear();
    for (int m : {1, 0, 2, 3, 4, 5}) {
      s.ranks[3].push_back({Forward, 0, m});
      s.ranks[3].push_back({Backward, 0, m});
    }
    s.ranks[0].clear();
    for (int m = 0; m < 6; ++m) {
      s.ranks[0].push_back({Forward, 0, m});
      s.ranks[0].push_back({Backward, 0, m});
    }
  });
  // The halves of an overlapped action must not need each other.
  PipelineSchedule one{ScheduleKind::OneFOneB, 1, 1, 1, {{{ForwardBackward, 0, 0, 0, 0}}}};
  refused(one, "a backward before its Forward", [](auto&) {});
}

BOOST_AUTO_TEST_CASE(broken_transfers_are_refused) {
  using enum ActionKind;
  const auto whole = with_transfers(make_schedule(ScheduleKind::OneFOneB, 3, 1, 5));
  refused(whole, "deadlock", [](auto& s) { erase(s.ranks[0], {SendForward, 0, 4}); });
  refused(whole, "at the other end", [](auto& s) { erase(s.ranks[0], {SendForward, 0, 2}); });
  refused(whole, "not posted before it", [](auto& s) { erase(s.ranks[1], {RecvForward, 0, 4}); });
  refused(whole, "sends what it has not computed", [](auto& s) {
    swap(s.ranks[0], {SendForward, 0, 0}, {Forward, 0, 0});
  });
  refused(whole, "a second post", [](auto& s) { s.ranks[0].push_back({SendForward, 0, 1}); });
  refused(whole, "after its use", [](auto& s) { s.ranks[1].push_back({RecvForward, 0, 1}); });
  refused(whole, "no other rank", [](auto& s) { s.ranks[2].push_back({SendForward, 0, 1}); });
  refused(whole, "at the other end", [](auto& s) {
    swap(s.ranks[1], {RecvForward, 0, 0}, {RecvForward, 0, 1});
  });
  // Activations and gradients share the channel 1 -> 0 of a V: their order counts too.
  const auto v = with_transfers(make_schedule(ScheduleKind::Zbv, 2, 2, 4));
  refused(v, "at the other end", [](auto& s) {
    auto& list = s.ranks[1];
    const auto is = [](ActionKind kind) { return [kind](const Action& a) { return a.kind == kind; }; };
    const auto gradient = std::find_if(list.begin(), list.end(), is(SendBackward));
    const auto activation = std::find_if(gradient, list.end(), is(SendForward));
    BOOST_REQUIRE(activation != list.end());
    std::rotate(gradient, gradient + 1, activation + 1);  // the gradient goes last
  });
}

BOOST_AUTO_TEST_CASE(transfers_are_added_once) {
  const auto whole = with_transfers(make_schedule(ScheduleKind::OneFOneB, 2, 1, 2));
  BOOST_CHECK_EXCEPTION(with_transfers(whole), Error,
                        [](const Error& e) { return e.kind() == ErrorKind::Usage; });
}
