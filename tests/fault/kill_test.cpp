// kill -9 at every point of a save, and at random moments: the next start always finds a checkpoint that is
// at least as new as the newest acknowledged one, and the run ends with the numbers of a run that was never
// killed.
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <map>

#include "base/rng.h"
#include "tests/fault/job_runner.h"
#include "tests/trainer/checkpoint/temp_folder.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

constexpr int64_t kSteps = 20;

std::vector<std::string> job(const std::string& run, int64_t steps, int64_t step_ms) {
  return {environment_text("HEARTH_TEST_SAVE_JOB"), run, std::to_string(steps), "5", std::to_string(step_ms)};
}

// The largest step in lines "event=... step=N" of a log; 0 for none.
int64_t newest_step(const std::string& text, const std::string& event) {
  int64_t newest = 0;
  const std::string key = "event=" + event + " step=";
  for (size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1))
    newest = std::max<int64_t>(newest, std::atoll(text.c_str() + at + key.size()));
  return newest;
}

struct JournalLine {
  int64_t attempt = 0, step = 0;
  std::string loss;
};
std::vector<JournalLine> read_journal(const std::string& run) {
  std::vector<JournalLine> lines;
  std::istringstream text(file_text(run + "/journal"));
  for (std::string line; std::getline(text, line) && !text.eof();) {  // a torn last line has no newline
    std::istringstream fields(line);
    JournalLine entry;
    fields >> entry.attempt >> entry.step >> entry.loss;
    lines.push_back(entry);
  }
  return lines;
}

// Losses of a run that nothing disturbs, by step.
std::map<int64_t, std::string> golden(int64_t steps) {
  TempFolder temp;
  RunningJob running(2, job(temp / "run", steps, 0), "", temp / "log");
  const int code = running.wait();
  BOOST_REQUIRE_MESSAGE(code == 0, "code " << code << "\n" << file_text(temp / "log"));
  std::map<int64_t, std::string> losses;
  for (const auto& line : read_journal(temp / "run")) losses[line.step] = line.loss;
  BOOST_REQUIRE(losses.size() == static_cast<size_t>(steps));
  return losses;
}
const std::map<int64_t, std::string>& golden_short() {
  static const auto losses = golden(kSteps);
  return losses;
}

// The history checker: every loss is the golden one, each attempt starts where a checkpoint was, steps do not
// skip.
void check_history(const std::string& run, const std::map<int64_t, std::string>& want) {
  int64_t attempt = 0, step = 0;
  for (const auto& line : read_journal(run)) {
    BOOST_TEST_CONTEXT("attempt " << line.attempt << " step " << line.step) {
      BOOST_TEST(line.loss == want.at(line.step));
      if (line.attempt == attempt) {
        BOOST_TEST(line.step == step + 1);
      } else {
        BOOST_TEST(line.attempt > attempt);
        BOOST_TEST(line.step <= step + 1);
        BOOST_TEST((line.step - 1) % 5 == 0);  // saves are at multiples of 5
      }
      attempt = line.attempt;
      step = line.step;
    }
  }
  BOOST_TEST(step == want.rbegin()->first);
}

void check_no_leftovers(const std::string& run) {
  BOOST_TEST(!std::filesystem::exists(run + "/run.lock"));
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints")) {
    const std::string name = entry.path().filename();
    BOOST_TEST((name.rfind("step_", 0) == 0 || name == "latest"), name);
  }
}

struct KillPoint {
  std::string point;
  int rank;
};
std::ostream& operator<<(std::ostream& out, const KillPoint& p) {
  return out << p.point << " on rank " << p.rank;
}
const std::vector<KillPoint> kPoints{
    {"ckpt.begin", 0},         {"ckpt.begin", 1},         {"async.copy", 0},        {"async.copy", 1},
    {"ckpt.shard_written", 0}, {"ckpt.shard_written", 1}, {"ckpt.shard_synced", 0}, {"ckpt.shard_synced", 1},
    {"ckpt.voted", 0},         {"ckpt.voted", 1},         {"ckpt.manifest", 0},     {"ckpt.renamed", 0},
    {"ckpt.parent_synced", 0}, {"ckpt.pruning", 0},       {"finalize", 1}};

}  // namespace

BOOST_DATA_TEST_CASE(kill_at_each_point_of_a_save, bdata::make(kPoints), where) {
  TempFolder temp;
  const std::string run = temp / "run";
  // The third save (of step 15) is the first one that prunes: two are always kept.
  const int64_t count = where.point == "ckpt.pruning" || where.point == "finalize" ? 1 : 3;
  const std::string fault = fmt::format("kill@rank={},point={},count={}", where.rank, where.point, count);
  {
    RunningJob killed(2, job(run, kSteps, 0), fault, temp / "log1");
    BOOST_TEST(killed.wait() != 0);
  }
  const std::string first = file_text(temp / "log1");
  const int64_t acknowledged = newest_step(first, "checkpoint_committed");
  if (where.point != "finalize") BOOST_TEST(acknowledged >= 10, first);
  RunningJob resumed(2, job(run, kSteps, 0), "", temp / "log2");
  const int code = resumed.wait();
  const std::string second = file_text(temp / "log2");
  BOOST_REQUIRE_MESSAGE(code == 0, "code " << code << "\n" << first << second);
  BOOST_TEST(newest_step(second, "resumed") >= acknowledged, second);
  check_history(run, golden_short());
  check_no_leftovers(run);
}

BOOST_AUTO_TEST_CASE(second_job_on_the_folder_stops_with_code_10_and_touches_nothing) {
  TempFolder temp;
  const std::string run = temp / "run";
  RunningJob first(2, job(run, 1000, 10), "", temp / "log1");
  for (int i = 0; i < 3000 && newest_step(file_text(temp / "log1"), "checkpoint_committed") == 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const std::string lock = file_text(run + "/run.lock");
  BOOST_REQUIRE(!lock.empty());
  RunningJob second(2, job(run, 1000, 10), "", temp / "log2");
  BOOST_TEST(second.wait() == 10);
  BOOST_TEST(file_text(temp / "log2").find("is in use by") != std::string::npos, file_text(temp / "log2"));
  BOOST_TEST(file_text(run + "/run.lock") == lock);
  BOOST_TEST(!first.ended());
  first.kill_all();
}

BOOST_AUTO_TEST_CASE(killed_at_random_moments_the_run_still_ends_with_the_golden_numbers) {
  const int kKills = 30;
  const uint64_t seed = 20240613;
  const int64_t steps = 600, step_ms = 20;  // more than 30 attempts of a second can finish
  BOOST_TEST_MESSAGE("seed " << seed);
  const auto want = golden(steps);
  TempFolder temp;
  const std::string run = temp / "run";
  const CounterRng rng(seed, "moments");
  int64_t acknowledged = 0;
  for (int kills = 0; kills < kKills; ++kills) {
    const std::string log = temp / ("log" + std::to_string(kills));
    RunningJob running(2, job(run, steps, step_ms), "", log);
    // From MPI_Init to some saves further on.
    const auto moment = std::chrono::milliseconds(100 + rng.bits(static_cast<uint64_t>(kills)) % 900);
    const auto until = std::chrono::steady_clock::now() + moment;
    while (std::chrono::steady_clock::now() < until && !running.ended())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    BOOST_REQUIRE(!running.ended());
    running.kill_all();
    const std::string text = file_text(log);
    BOOST_TEST(text.find("error:") == std::string::npos, text);
    const int64_t resumed = newest_step(text, "resumed");
    if (text.find("event=resumed") != std::string::npos) BOOST_TEST(resumed >= acknowledged, text);
    acknowledged = std::max(acknowledged, newest_step(text, "checkpoint_committed"));
  }
  BOOST_TEST_MESSAGE(kKills << " kills, newest acknowledged step " << acknowledged);
  BOOST_TEST(acknowledged > 0);
  RunningJob last(2, job(run, steps, 0), "", temp / "last");
  const int code = last.wait();
  BOOST_REQUIRE_MESSAGE(code == 0, "code " << code << "\n" << file_text(temp / "last"));
  check_history(run, want);
  check_no_leftovers(run);
}
