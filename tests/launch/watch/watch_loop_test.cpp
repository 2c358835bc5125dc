// The loop of `hearth watch`: one round, judgements, bad files, and what is left after a kill at every point.
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <cstdlib>

#include "launch/config_parser.h"
#include "launch/watch/trigger.h"
#include "tests/launch/watch/watch_bench.h"

using namespace hearth;
using namespace hearth::testing;
namespace bdata = boost::unit_test::data;

namespace hearth {
std::ostream& operator<<(std::ostream& out, FileOp op) {
  return out << name(op);
}
}  // namespace hearth

namespace {

struct Killed {};  // not an Error: nothing in the loop may catch it

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  if (std::filesystem::exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// What must be the same however often the loop was killed: the events without their times and numbers, the
// files of releases, sources and rejections, and what is served.
std::string end_state(const WatchBench& bench) {
  std::string out = "serving " + bench.served() + "\n";
  for (auto event : bench.events()) {
    if (event.at("event") == "step_failed" || event.at("event") == "serving_found") continue;
    event.erase("seq");
    event.erase("time");
    std::string line = event.dump();
    const std::string root = bench.folder.path();
    for (size_t at = line.find(root); at != std::string::npos; at = line.find(root))
      line.replace(at, root.size(), "ROOT");
    out += line + "\n";
  }
  for (const char* folder :
       {"releases", "candidates", "rejected", "accepted", "accepted/0001", "accepted/0002", "data", "tmp"})
    for (const auto& name : names_in(bench.work(folder))) out += std::string(folder) + "/" + name + "\n";
  for (const auto& name : names_in(bench.config.inbox)) out += "inbox/" + name + "\n";
  return out;
}

// One round with everything in it: a duplicate, an unknown ending, a bad file, a promotion; then a rejected
// one.
void first_round(WatchBench& bench) {
  bench.drop("a.jsonl", 1);
  bench.drop("same.jsonl", 1);
  bench.drop("b.jsonl", 2);
  write_file(bench.config.inbox + "/bad.jsonl", "{\"text\": \"cut sho");
  write_file(bench.config.inbox + "/picture.png", "png");
  write_file(bench.config.inbox + "/.upload", "hidden");
  write_file(bench.config.inbox + "/c.jsonl.part", "half");
}
void second_round(WatchBench& bench) {
  bench.drop("poison.jsonl", 3, "poison");
}

// Runs until it ends by itself, being killed at the first time that `point` is met for the `nth` time.
// Returns how often it was started.
int run_killed(WatchBench& bench, const std::string& kill_point, int nth) {
  int met = 0;
  bool killed = false;
  for (int starts = 1;; ++starts) {
    bench.at_point = [&](std::string_view point) {
      if (point == kill_point && ++met == nth && !killed) {
        killed = true;
        throw Killed{};
      }
    };
    try {
      bench.run();
      return starts;
    } catch (const Killed&) {
      bench.served();  // whole at every moment
    }
  }
}

const std::string& undisturbed() {
  static const std::string state = [] {
    WatchBench bench;
    first_round(bench);
    bench.run();
    second_round(bench);
    bench.run();
    BOOST_TEST(bench.served() == "0001");
    return end_state(bench);
  }();
  return state;
}

}  // namespace

BOOST_AUTO_TEST_CASE(one_round_from_the_inbox_to_the_link) {
  WatchBench bench;
  first_round(bench);
  bench.run();
  BOOST_TEST(bench.served() == "0001");
  BOOST_TEST(read_file(bench.config.serving + "/config.json") == "{\"loss\":99.0}");
  BOOST_TEST((names_in(bench.config.inbox) == std::vector<std::string>{".upload", "c.jsonl.part"}));
  const LineageIndex index = bench.index();
  BOOST_TEST(index.releases.at("0001").files.size() == 2u);
  BOOST_TEST(index.releases.at("0001").parent == "0000");
  BOOST_TEST(bench.count("file_accepted") == 3);  // the bad one is found to be bad later
  BOOST_TEST(bench.count("file_duplicate") == 1);
  BOOST_TEST(bench.count("file_rejected") == 2);
  for (const auto& [digest, file] : index.files) {
    if (file.names.front() == "a.jsonl" || file.names.front() == "b.jsonl")
      BOOST_TEST((file.releases == std::vector<std::string>{"0001"}));
  }
  const auto rejected = names_in(bench.work("rejected"));
  BOOST_TEST(rejected.size() == 4u);  // two files, each with its reason
  BOOST_TEST(bench.children.count("train") == 1);
  bench.run();
  BOOST_TEST(bench.children.count("train") == 1);  // nothing new, nothing done
}

BOOST_AUTO_TEST_CASE(a_worse_candidate_is_kept_aside_and_serving_is_not_touched) {
  WatchBench bench;
  bench.drop("a.jsonl", 1, "poison");
  bench.run();
  BOOST_TEST(bench.served() == "0000");
  BOOST_TEST(bench.index().releases.at("0001").promoted == false);
  BOOST_TEST((names_in(bench.work("candidates")) == std::vector<std::string>{"0001"}));
  bench.drop("b.jsonl", 2);
  bench.run();
  BOOST_TEST(bench.served() == "0002");
  const LineageIndex index = bench.index();
  BOOST_TEST(index.releases.at("0002").parent == "0000");
  BOOST_TEST(index.releases.at("0002").inherited.empty());  // nothing of the rejected one
}

BOOST_AUTO_TEST_CASE(
    a_training_that_diverges_is_a_rejection_and_another_failure_stops_with_the_code_of_the_child) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  bench.children.fail_with = {{"train", 6}};
  bench.run();
  BOOST_TEST(bench.served() == "0000");
  BOOST_TEST(bench.count("rejected") == 1);
  bench.drop("b.jsonl", 2);
  bench.children.fail_with = {{"train", 11}};
  BOOST_CHECK_EXCEPTION(bench.run(), Error, [](const Error& error) {
    return exit_code(error.kind()) == 11 && error.message().find("ordered to fail") != std::string::npos;
  });
  BOOST_TEST(bench.served() == "0000");
  bench.children.fail_with.clear();
  bench.run();
  BOOST_TEST(bench.served() == "0002");
}

BOOST_AUTO_TEST_CASE(descendants_inherit_and_old_releases_go) {
  WatchBench bench;
  bench.config.keep_releases = 2;
  for (int i = 1; i <= 4; ++i) {
    bench.drop(fmt::format("{}.jsonl", i), i);
    bench.run();
  }
  BOOST_TEST(bench.served() == "0004");
  BOOST_TEST((names_in(bench.work("releases")) == std::vector<std::string>{"0003", "0004"}));
  BOOST_TEST((names_in(bench.work("runs/0001")).empty()));
  const LineageIndex index = bench.index();
  BOOST_TEST(index.releases.at("0004").files.size() == 1u);
  BOOST_TEST(index.releases.at("0004").inherited.size() == 3u);
}

BOOST_AUTO_TEST_CASE(too_few_documents_wait_for_more) {
  WatchBench bench;
  write_file(bench.config.inbox + "/one.txt", "a single document");
  bench.run();
  BOOST_TEST(bench.served() == "0000");
  BOOST_TEST(bench.count("batch_returned") == 1);
  bench.run();
  BOOST_TEST(bench.count("batch_returned") == 1);  // not again and again
  bench.drop("more.jsonl", 1);
  bench.run();
  BOOST_TEST(bench.served() == "0001");
  BOOST_TEST(bench.index().releases.at("0001").files.size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_link_that_people_turned_back_is_what_the_next_run_starts_from) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  bench.run();
  std::filesystem::remove(bench.config.serving);
  std::filesystem::create_symlink(bench.work("releases/0000"), bench.config.serving);
  bench.drop("b.jsonl", 2);
  bench.run();
  BOOST_TEST(bench.served() == "0002");
  BOOST_TEST(bench.index().releases.at("0002").parent == "0000");
  std::filesystem::remove(bench.config.serving);
  write_file(bench.config.serving + "/mine", "x");
  BOOST_CHECK_THROW(bench.run(), Error);
  BOOST_TEST(read_file(bench.config.serving + "/mine") == "x");
}

BOOST_AUTO_TEST_CASE(a_file_that_still_grows_waits) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  SettledFiles inbox(*bench.fs, bench.clock, bench.config.inbox, 2000);
  BOOST_TEST(inbox.look().empty());
  ++bench.clock.seconds;
  write_file(bench.config.inbox + "/a.jsonl", "longer than before\n");
  BOOST_TEST(inbox.look().empty());
  ++bench.clock.seconds;
  BOOST_TEST(inbox.look().empty());
  ++bench.clock.seconds;
  BOOST_TEST(inbox.look().size() == 1u);
}

BOOST_AUTO_TEST_CASE(asked_to_stop_it_ends_with_75_and_goes_on_later) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  bool stop = false;
  bench.stop = [&] { return stop; };
  bench.children.before = [&](const std::string& step) { stop = step == "train"; };
  BOOST_CHECK_EXCEPTION(bench.run(), Error, [](const Error& error) { return exit_code(error.kind()) == 75; });
  stop = false;
  bench.children.before = nullptr;
  bench.run();
  BOOST_TEST(bench.served() == "0001");
}

BOOST_DATA_TEST_CASE(killed_at_every_point_it_ends_as_if_nothing_had_happened, bdata::make(kWatchPoints),
                     where) {
  const std::string point(where);
  int kills = 0;
  for (int nth = 1; nth <= 40; ++nth) {
    WatchBench bench;
    first_round(bench);
    int starts = run_killed(bench, point, nth);
    second_round(bench);
    if (starts == 1)
      starts += run_killed(bench, point, nth) - 1;
    else
      bench.at_point = nullptr, bench.run();
    if (starts == 1) break;  // never met so often
    ++kills;
    BOOST_TEST_CONTEXT(point << " number " << nth) {
      BOOST_TEST(end_state(bench) == undisturbed());
      BOOST_TEST(bench.children.count("train") <= 3);
    }
  }
  BOOST_TEST(kills > 0, point << " is never met");
  BOOST_TEST_MESSAGE(point << ": " << kills << " kills");
}

// Each call of a kind fails once, then the loop is started again.
BOOST_DATA_TEST_CASE(any_failing_call_of_the_file_system_leaves_serving_whole,
                     bdata::make({FileOp::Create, FileOp::Write, FileOp::Sync, FileOp::Close, FileOp::Rename,
                                  FileOp::Symlink, FileOp::Remove, FileOp::SyncDirectory}),
                     op) {
  for (int64_t nth = 1;; ++nth) {
    WatchBench bench;
    first_round(bench);
    FaultFileSystem faulty(*bench.fs);
    faulty.set_fault({.op = op, .nth = nth, .error = EIO});
    bool failed = false;
    try {
      bench.run(&faulty);
    } catch (const Error&) {
      failed = true;
    }
    if (!faulty.fired()) {
      BOOST_TEST(nth > 1, name(op));
      BOOST_TEST_MESSAGE(name(op) << ": " << nth - 1 << " calls");
      break;
    }
    BOOST_TEST_CONTEXT(name(op) << " number " << nth << (failed ? "" : ", survived")) {
      bench.served();
      bench.run();
      second_round(bench);
      bench.run();
      BOOST_TEST(end_state(bench) == undisturbed());
    }
  }
}

BOOST_AUTO_TEST_CASE(triggers) {
  ManualClock clock;
  const std::vector<WaitingFile> files{
      {.name = "a", .bytes = 60, .documents = 3, .accepted_s = clock.seconds}};
  const auto due = [&](const TriggerConfig& trigger, int64_t too_small = 0) {
    return trigger_reason(trigger, files, too_small, clock).has_value();
  };
  BOOST_TEST(due({.min_new_bytes = 60}));
  BOOST_TEST(!due({.min_new_bytes = 61}));
  BOOST_TEST(!due({.min_new_bytes = 1}, 60));
  BOOST_TEST(due({.min_new_documents = 3}));
  BOOST_TEST(!due({.min_new_documents = 4}));
  BOOST_TEST(!due({.max_age_s = 10}));
  BOOST_TEST(!due({.schedule = {"22:00"}}));  // was before the file came
  BOOST_TEST(!due({.schedule = {"22:14"}}));
  clock.seconds += 60;
  BOOST_TEST(due({.max_age_s = 10}));
  BOOST_TEST(due({.schedule = {"02:00", "22:14"}}));
  clock.seconds += 86400;
  BOOST_TEST(due({.schedule = {"22:00"}}));  // also where the watcher was not there at that hour
  BOOST_TEST(!trigger_reason({.min_new_bytes = 1}, {}, 0, clock));
}

BOOST_AUTO_TEST_CASE(forgetting_is_measured_against_the_best_release) {
  WatchConfig config;
  config.old_validation = {"old"};
  config.max_forgetting = 0.1;
  WatchRun run{.name = "0003", .parent = "0002"};
  run.scores = {{"0003", "new", "n", 1.0, 1},
                {"0002", "new", "n", 1.5, 1},
                {"0003", "old", "o", 2.15, 1},
                {"0002", "old", "o", 2.08, 1}};
  BOOST_TEST(judge(config, run, "new", {}).promote);
  BOOST_TEST(!judge(config, run, "new", {{"0000", "old", "o", 2.0, 1}}).promote);  // crept up twice
  BOOST_TEST(judge(config, run, "new", {{"0000", "old", "another content", 2.0, 1}}).promote);
  run.scores[0].loss = std::numeric_limits<double>::quiet_NaN();
  BOOST_TEST(!judge(config, run, "new", {}).promote);
}

BOOST_AUTO_TEST_CASE(mistakes_in_the_file_are_all_named_with_their_place) {
  const std::string text =
      "watch:\n  experimnt: a.yaml\n  inbox: in\n  workspace: w\n  tokenizer: t\n  base_model: b\n  serving: "
      "s\n"
      "  trigger: {schedule: [\"25:00\"]}\n  validation_fraction: 0\n  replay_share: 0.5\n";
  BOOST_CHECK_EXCEPTION(parse_watch_config(text, "w.yaml"), Error, [](const Error& error) {
    const std::string& message = error.message();
    BOOST_TEST(
        message.find("w.yaml:2:3: watch.experimnt: unknown key; the nearest valid key is watch.experiment") !=
            std::string::npos,
        message);
    BOOST_TEST(message.find("watch.experiment: is required") != std::string::npos, message);
    BOOST_TEST(message.find("must be \"HH:MM\"") != std::string::npos, message);
    BOOST_TEST(message.find("w.yaml:9:3: watch.validation_fraction") != std::string::npos, message);
    BOOST_TEST(message.find("w.yaml:10:3: watch.replay_share") != std::string::npos, message);
    return error.kind() == ErrorKind::Config;
  });
}

BOOST_AUTO_TEST_CASE(a_torn_line_of_the_journal_is_written_again_and_an_edited_journal_is_refused) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  const std::string path = bench.work("lineage.jsonl");
  int left = 4;  // commits with events: base, accepted, (removed), planned
  bench.at_point = [&](std::string_view point) {
    if (point == "watch.journal_written" && --left == 0) throw Killed{};
  };
  BOOST_CHECK_THROW(bench.run(), Killed);
  const std::string whole = read_file(path);
  write_file(path, whole.substr(0, whole.size() - 10));
  bench.at_point = nullptr;
  bench.run();
  BOOST_TEST(read_file(path).starts_with(whole));
  BOOST_TEST(bench.served() == "0001");
  const std::string longer = read_file(path);
  write_file(path, longer.substr(longer.find('\n') + 1));
  BOOST_CHECK_EXCEPTION(bench.run(), Error,
                        [](const Error& error) { return error.kind() == ErrorKind::Corrupt; });
}

BOOST_AUTO_TEST_CASE(a_run_that_cannot_go_on_can_be_given_up) {
  WatchBench bench;
  bench.drop("a.jsonl", 1);
  bench.children.fail_with = {{"export", 5}};
  bench.fs->create_directories(bench.work("releases"));
  std::filesystem::copy(bench.config.base_model, bench.work("releases/0000"));
  write_file(bench.work("releases/0000/model.safetensors"), std::string(1000, 'x'));
  BOOST_CHECK_THROW(bench.run(), Error);
  BOOST_CHECK_THROW(bench.run(), Error);  // the same step again
  bench.children.fail_with.clear();
  bench.give_up = true;
  bench.run();
  BOOST_TEST(bench.served() == "0000");
  BOOST_TEST(bench.count("rejected") == 1);
}

BOOST_AUTO_TEST_CASE(the_example_that_ships_is_complete_and_its_page_is_current) {
  const auto fs = make_posix_file_system();
  const std::string root = HEARTH_SOURCE_DIR, page = root + "/configs/watch/README.md";
  const WatchConfig config = load_watch_config(*fs, root + "/configs/watch/example.yaml");
  BOOST_REQUIRE(chdir(root.c_str()) == 0);
  BOOST_CHECK_NO_THROW(
      load_experiment(*fs, config.experiment, data_overrides(config, "0001", config.base_model)));
  if (std::getenv("HEARTH_UPDATE") != nullptr) fs->write_atomically(page, watch_reference_markdown());
  BOOST_TEST(fs->read_text(page) == watch_reference_markdown(),
             "configs/watch/README.md is behind WatchConfig; run this test with HEARTH_UPDATE=1");
}
