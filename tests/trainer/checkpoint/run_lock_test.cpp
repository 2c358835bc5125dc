// One writer per run folder: a second job stops, dead holders are replaced, a job that was taken over
// notices.
#include "trainer/checkpoint/run_lock.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>

#include "tests/trainer/checkpoint/sample_state.h"
#include "tests/trainer/checkpoint/temp_folder.h"
#include "trainer/checkpoint/find_checkpoint.h"

using namespace hearth;

namespace {

struct Bench {
  TempFolder temp;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  Log log{Log::Options{.rank = 1, .world_size = 2, .level = LogLevel::Error, .file = ""}};
  LockHolder me = this_process("8841");
  std::unique_ptr<RunLock> acquire(const LockHolder& who, TakeOver take_over = TakeOver::DeadOnly) {
    return RunLock::acquire(*fs, log, temp.path(), who, take_over);
  }
  std::string refusal(const LockHolder& who) {
    try {
      acquire(who);
      return "";
    } catch (const Error& error) {
      BOOST_TEST(exit_code(error.kind()) == 10);
      return error.message();
    }
  }
};

// A process id that is certainly free: a child that has ended and was waited for.
int64_t dead_pid() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

}  // namespace

BOOST_AUTO_TEST_CASE(second_job_is_told_who_holds_the_folder) {
  Bench bench;
  const auto lock = bench.acquire(bench.me);
  BOOST_TEST(lock->attempt() == 1);
  const auto before = bench.fs->read_text(bench.temp / "run.lock");
  LockHolder other = this_process("8842");
  const auto message = bench.refusal(other);
  BOOST_TEST(message.find("in use by job 8841 on " + bench.me.host) != std::string::npos, message);
  BOOST_TEST(message.find("pid " + std::to_string(::getpid())) != std::string::npos, message);
  BOOST_TEST(bench.fs->read_text(bench.temp / "run.lock") == before);
  lock->check();
}

BOOST_AUTO_TEST_CASE(released_lock_can_be_taken_and_attempts_are_never_reused) {
  Bench bench;
  for (int64_t attempt = 1; attempt <= 3; ++attempt)
    BOOST_TEST(bench.acquire(bench.me)->attempt() == attempt);
  BOOST_TEST(!bench.fs->exists(bench.temp / "run.lock"));
}

BOOST_AUTO_TEST_CASE(dead_holder_of_this_boot_is_replaced) {
  Bench bench;
  LockHolder dead = bench.me;
  dead.pid = dead_pid();
  auto old_lock = bench.acquire(dead);
  const auto lock = bench.acquire(bench.me);
  BOOST_TEST(lock->attempt() == 2);
  BOOST_CHECK_THROW(old_lock->check(), Error);
  old_lock.reset();  // must not remove a lock that is not its own
  lock->check();
}

BOOST_AUTO_TEST_CASE(zombie_of_a_killed_holder_does_not_keep_the_folder_locked) {
  Bench bench;
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  LockHolder holder = bench.me;
  holder.pid = child;
  holder.pid_start = process_start(child);
  const auto held = bench.acquire(holder);
  BOOST_TEST(bench.refusal(bench.me) != "");  // alive
  ::kill(child, SIGKILL);
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);  // dead, and still listed
  BOOST_TEST(bench.acquire(bench.me)->attempt() == 2);
  ::waitpid(child, nullptr, 0);
}

BOOST_AUTO_TEST_CASE(reused_process_id_does_not_keep_the_folder_locked) {
  Bench bench;
  LockHolder earlier = bench.me;
  earlier.pid_start -= 1;  // the same number, an earlier process
  const auto old_lock = bench.acquire(earlier);
  BOOST_TEST(bench.acquire(bench.me)->attempt() == 2);
}

BOOST_AUTO_TEST_CASE(holder_elsewhere_or_of_an_earlier_boot_needs_take_over) {
  for (const bool other_host : {true, false}) {
    Bench bench;
    LockHolder far = bench.me;
    far.pid = dead_pid();
    (other_host ? far.host : far.boot_id) = "gpu07";
    const auto held = bench.acquire(far);
    BOOST_TEST(bench.refusal(bench.me) != "");
    const auto lock = bench.acquire(bench.me, TakeOver::Force);
    BOOST_TEST(lock->attempt() == 2);
    lock->check();
  }
}

BOOST_AUTO_TEST_CASE(empty_lock_of_a_job_that_died_while_writing_it_is_replaced) {
  Bench bench;
  bench.fs->create(bench.temp / "run.lock", CreateMode::Exclusive)->close();
  BOOST_TEST(bench.acquire(bench.me)->attempt() == 1);
}

BOOST_AUTO_TEST_CASE(foreign_text_in_the_lock_is_not_touched) {
  Bench bench;
  for (const std::string text : {"hello", "{}", "[1]", "{\"host\": 1}"}) {
    bench.fs->write_atomically(bench.temp / "run.lock", text);
    BOOST_TEST(bench.refusal(bench.me) != "");
    BOOST_TEST(bench.fs->read_text(bench.temp / "run.lock") == text);
  }
}

// Row 27: the old job sleeps, another takes over and saves, the old one wakes up and must not commit.
BOOST_AUTO_TEST_CASE(zombie_writer_stops_at_its_next_commit) {
  Bench bench;
  const auto control = make_single_control_plane();
  LockHolder zombie = bench.me;
  zombie.host = "gpu07";
  const auto old_lock = bench.acquire(zombie);
  auto options = sample::options(bench.temp.path());
  options.check_lock = [&] { old_lock->check(); };
  options.attempt = old_lock->attempt();
  CheckpointSaver old_saver(*bench.fs, *control, bench.log, options);
  sample::save(old_saver, *control, 1);
  BOOST_REQUIRE(sample::begin_save(old_saver, *control, 2));  // and falls asleep here

  const auto new_lock = bench.acquire(bench.me, TakeOver::Force);
  options.check_lock = [&] { new_lock->check(); };
  options.attempt = new_lock->attempt();
  {
    CheckpointSaver new_saver(*bench.fs, *control, bench.log, options);
    for (const int64_t step : {2, 3}) sample::save(new_saver, *control, step);
    new_saver.finish();
  }
  const auto manifest = bench.fs->read_text(bench.temp / "checkpoints/step_00000002/manifest.json");
  // Its temporary folder is gone (Io) or its lock is (InUse): either way it writes nothing over the new one.
  BOOST_CHECK_THROW(
      {
        old_saver.wait();
        sample::save(old_saver, *control, 4);
      },
      Error);
  BOOST_TEST(bench.fs->read_text(bench.temp / "checkpoints/step_00000002/manifest.json") == manifest);
  BOOST_TEST(!bench.fs->exists(bench.temp / "checkpoints/step_00000004"));
  BOOST_TEST(find_checkpoint(*bench.fs, *control, bench.log, bench.temp.path())->step() == 3);
}

BOOST_AUTO_TEST_CASE(commit_with_a_foreign_lock_is_code_10) {
  Bench bench;
  const auto control = make_single_control_plane();
  LockHolder zombie = bench.me;
  zombie.host = "gpu07";
  const auto old_lock = bench.acquire(zombie);
  auto options = sample::options(bench.temp.path());
  options.check_lock = [&] { old_lock->check(); };
  CheckpointSaver saver(*bench.fs, *control, bench.log, options);
  sample::save(saver, *control, 1);
  const auto new_lock = bench.acquire(bench.me, TakeOver::Force);
  BOOST_CHECK_EXCEPTION(sample::save(saver, *control, 2), Error, [](const Error& error) {
    return exit_code(error.kind()) == 10 &&
           error.message().find("taken over by attempt 2") != std::string::npos;
  });
  BOOST_TEST(!bench.fs->exists(bench.temp / "checkpoints/step_00000002"));
}
