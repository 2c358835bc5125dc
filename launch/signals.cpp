#include "launch/signals.h"

#include <csignal>

namespace hearth {
namespace {

volatile std::sig_atomic_t requested_signal = 0;

void remember(int signal_number) {
  requested_signal = signal_number;
}

void install(int signal_number, int flags) {
  struct sigaction action = {};
  action.sa_handler = remember;
  // SA_RESTART: file and MPI calls under way go on; the loop looks at the flag on its own.
  action.sa_flags = SA_RESTART | flags;
  sigaction(signal_number, &action, nullptr);
}

}  // namespace

void catch_stop_notice() {
  install(SIGUSR1, 0);
}

void catch_interrupts() {
  // SA_RESETHAND: the second one takes its default action.
  install(SIGINT, static_cast<int>(SA_RESETHAND));
  install(SIGTERM, static_cast<int>(SA_RESETHAND));
}

std::optional<int> stop_signal() {
  const int seen = requested_signal;
  return seen == 0 ? std::nullopt : std::optional<int>(seen);
}

void release_signals() {
  for (const int number : {SIGUSR1, SIGINT, SIGTERM}) std::signal(number, SIG_DFL);
  requested_signal = 0;
}

}  // namespace hearth
