// The stop flag. Signals are raised in this process, so delivery is immediate.
#include "launch/signals.h"

#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>

using namespace hearth;

BOOST_AUTO_TEST_CASE(notice_sets_the_flag_and_may_come_twice) {
  release_signals();
  catch_stop_notice();
  BOOST_TEST(!stop_signal().has_value());
  std::raise(SIGUSR1);
  std::raise(SIGUSR1);
  BOOST_TEST(stop_signal().value() == SIGUSR1);
  release_signals();
  BOOST_TEST(!stop_signal().has_value());
}

BOOST_AUTO_TEST_CASE(second_interrupt_ends_the_process) {
  for (const int number : {SIGINT, SIGTERM}) {
    const pid_t child = fork();
    if (child == 0) {
      release_signals();
      catch_interrupts();
      std::raise(number);
      if (stop_signal() != number) _exit(1);
      std::raise(number);
      _exit(0);
    }
    int status = 0;
    BOOST_REQUIRE(waitpid(child, &status, 0) == child);
    BOOST_TEST(WIFSIGNALED(status));
    BOOST_TEST(WTERMSIG(status) == number);
  }
}
