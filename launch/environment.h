// The process's environment, read once at the start of main: library code never calls getenv.
#pragma once

#include <string>

#include "parallel/bootstrap.h"

namespace hearth {

struct Environment {
  LaunchEnvironment launch;  // what the job's bootstrap wants to know
  // As the launcher says (Open MPI, PMIx/PMI, Slurm), for messages before the control plane exists; 0 of 1
  // alone.
  int rank = 0;
  int world_size = 1;
  std::string host;
  std::string slurm_job_id;         // SLURM_JOB_ID, empty outside Slurm
  bool stderr_is_terminal = false;  // progress lines overwrite themselves only there
  int omp_num_threads = 0;          // OMP_NUM_THREADS, the user's word on compute threads; 0: not set
  std::string cache_folder;         // HEARTH_CACHE, or ~/.cache/hearth; empty where there is no home
  std::string fault_plan;           // HEARTH_FAULT: faults for the tests (reliability.md), empty in real life

  bool several_ranks() const { return world_size > 1; }
};

Environment read_environment();

}  // namespace hearth
