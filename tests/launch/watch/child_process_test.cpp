// Real children: codes, output, a request to stop, and death with the parent.
#include "launch/watch/child_process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <thread>

#include "base/error.h"
#include "tests/data/data_fixture.h"
#include "trainer/checkpoint/run_lock.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

ChildCommand shell(const TempFolder& folder, const std::string& text) {
  return {{"/bin/sh", "-c", text}, folder / "out", folder / "log"};
}

// Waits up to ten seconds.
template <class Condition>
bool soon(const Condition& condition) {
  for (int i = 0; i < 1000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return condition();
}

}  // namespace

BOOST_AUTO_TEST_CASE(codes_signals_and_output) {
  const TempFolder folder;
  const auto runner = make_process_runner([] { return false; });
  ChildResult result = runner->run(shell(folder, "echo result; echo before >&2; exit 0"));
  BOOST_TEST(result.code == 0);
  BOOST_TEST(read_file(folder / "out") == "result\n");
  result = runner->run(shell(folder, "echo second >&2; echo third >&2; exit 4"));
  BOOST_TEST(result.code == 4);
  BOOST_TEST(result.last_lines == "second\nthird");  // of this child alone
  BOOST_TEST(read_file(folder / "log") == "before\nsecond\nthird\n");
  BOOST_TEST(runner->run(shell(folder, "kill -9 $$")).code == 128 + 9);
  BOOST_TEST(runner->run({{"/bin/echo", "a b", "$HOME", "*"}, folder / "out", folder / "log"}).code == 0);
  BOOST_TEST(read_file(folder / "out") == "a b $HOME *\n");
  BOOST_CHECK_EXCEPTION(
      runner->run({{"/no/such/program"}, folder / "out", folder / "log"}), Error,
      [](const Error& error) { return error.message().find("/no/such/program") != std::string::npos; });
}

BOOST_AUTO_TEST_CASE(a_request_to_stop_becomes_one_sigterm) {
  const TempFolder folder;
  const auto runner = make_process_runner([&] { return std::filesystem::exists(folder / "ready"); });
  const std::string script = "trap 'echo told >> " + (folder / "told") + "; exit 75' TERM; : > " +
                             (folder / "ready") + "; while :; do sleep 0.05; done";
  BOOST_TEST(runner->run(shell(folder, script)).code == 75);
  BOOST_TEST(read_file(folder / "told") == "told\n");
}

BOOST_AUTO_TEST_CASE(a_child_dies_with_its_parent) {
  const TempFolder folder;
  const pid_t parent = ::fork();
  if (parent == 0) {
    make_process_runner([] {
      return false;
    })->run(shell(folder, "echo $$ > " + (folder / "pid") + "; sleep 100"));
    ::_exit(0);
  }
  BOOST_REQUIRE(
      soon([&] { return std::filesystem::exists(folder / "pid") && !read_file(folder / "pid").empty(); }));
  const int64_t child = std::stoll(read_file(folder / "pid"));
  BOOST_TEST(process_start(child) != 0);
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  BOOST_TEST(soon([&] { return process_start(child) == 0; }));
}
