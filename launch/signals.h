// Asking a run to stop: USR1 (Slurm's notice, launch/mpirun.sh's Ctrl-C) sets a flag that the training loop
// looks at on each step boundary; the run saves and ends with code 75. The flag is the only mutable global of
// Hearth.
#pragma once

#include <optional>

namespace hearth {

// USR1 is caught from here on, in every verb: a notice that comes during start-up must not kill the rank.
void catch_stop_notice();

// INT and TERM too ask for a stop, the first time; the second ends the process at once, as they do by
// default. For verbs that can save (train).
void catch_interrupts();

// The signal that asked for a stop, if any did.
std::optional<int> stop_signal();

// Forgets the request and gives the signals their default actions back.
void release_signals();

}  // namespace hearth
