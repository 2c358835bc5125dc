// What every verb gets, and how a verb is added: one file launch/commands/<verb>.cpp that defines
//   void add_<verb>_command(CLI::App& parent, CommandContext& context);
// declared in launch/commands/commands.h and called once by launch/main.cpp. The function registers flags and
// a callback; the callback does the work, writes results to stdout, progress and logs to stderr, and throws
// hearth::Error for trouble (main prints it once per job and turns its kind into the exit code). No verb
// calls exit().
#pragma once

#include "base/file_system.h"
#include "launch/environment.h"
#include "parallel/bootstrap.h"

namespace CLI {
class App;
}

namespace hearth {

struct CommandContext {
  FileSystem& fs;
  const Environment& environment;
  // All ranks of the job (job.control) and what make_comm() needs. main has initialised MPI by now where
  // mpirun or srun started the program; otherwise this is a job of one rank.
  Job& job;
  int exit_code = 0;  // set by a verb that ends normally with another code (doctor, a preempted train)
};

}  // namespace hearth
