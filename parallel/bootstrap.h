// How a process becomes a rank, and how a job ends. start_job() decides between MPI and a single rank from
// environment values that launch hands in (nothing here reads the environment); make_comm() builds the Comm
// of a group of ranks; run_job() is the frame that launch puts around a verb so that no rank hangs when one
// fails. A bootstrap over TCP, for Slurm without PMIx, will come behind the same functions. Main thread only.
// Order of life: Job, then Comms, then Works; destroy in the opposite order.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "parallel/comm.h"
#include "parallel/control_plane.h"
#include "parallel/flight_recorder.h"
#include "parallel/hang_reporter.h"

namespace hearth {

// Values of environment variables; nullopt where a variable is not set.
struct LaunchEnvironment {
  std::optional<std::string> ompi_comm_world_size;  // OMPI_COMM_WORLD_SIZE: under mpirun (Open MPI)
  std::optional<std::string> pmix_rank;             // PMIX_RANK: under mpirun or srun --mpi=pmix
  std::optional<std::string> pmi_size;  // PMI_SIZE: under srun --mpi=pmi2, or another MPI's mpirun
  std::optional<std::string> slurm_step_num_tasks;  // SLURM_STEP_NUM_TASKS: under srun of any kind

  // Fills the fields; `get` returns null for a variable that is not set (std::getenv does).
  static LaunchEnvironment read(const std::function<const char*(const char*)>& get);
};

struct JobOptions {
  double timeout_s = 300;  // deadline of the control plane's calls and default of every Comm
  // Called before the process is ended from a place that cannot throw (the NCCL watchdog thread): writes the
  // end record and the log. Afterwards the process ends with the exit code of the error's kind. May be empty.
  std::function<void(const Error&, const FlightRecorder&)> on_fatal;
};

struct Job {
  JobOptions options;
  std::shared_ptr<FlightRecorder> recorder;  // one for the process: a part of the job has that of the whole
  std::unique_ptr<HangReporter> hang;        // of watch_for_hangs; outlives `control`, whose end may hang
  std::unique_ptr<ControlPlane> control;
  std::string launcher;  // "single", "mpirun" or "srun (PMIx)": for logs
};

// Throws Error{Config} where the launcher started several tasks that MPI could not join into one job.
Job start_job(const LaunchEnvironment& environment, JobOptions options);

// Ranks [first, first + count) of `whole`, this one among them, as a job that counts from 0: own votes,
// groups and deadlines. Collective over `whole`, whose every rank names its part; `name` is for messages.
// What ends a job (its hang page, run_job) stays with `whole`, which outlives the part. Throws Error{Usage}
// for a job of one rank.
Job split_job(Job& whole, const std::string& name, int first, int count);

struct CommOptions {
  std::string group;       // "dp", "world": for messages
  std::vector<int> ranks;  // of the job, in group order; this rank is among them
  // Device ordinal that holds the buffers, for NCCL; nullopt: host memory, for MPI. The same kind on all
  // ranks.
  std::optional<int> cuda_device;
  std::optional<double> timeout_s;  // default: JobOptions
  // NCCL: most thread blocks of one collective, each of which takes a multiprocessor from the work beside it;
  // 0: its own choice. NCCL_MAX_CTAS has the last word.
  int max_ctas = 0;
};

// Collective over the job: every rank calls it with its own group, groups of one call are disjoint.
// A group of one rank gets a Comm that only copies.
std::unique_ptr<Comm> make_comm(Job& job, const CommOptions& options);

// Collective over the job, before its Comms are made; nothing for a job of one rank. From here on a rank that
// does not come is explained by a page (parallel/hang_reporter.h), and a deadline ends every rank even where
// the main thread sits in a device call. `report` is given this rank's error when a watchdog ends the
// process.
void watch_for_hangs(Job& job, HangOptions options, const std::function<void(const Error&)>& report);

// Starts the job, runs `body`, and ends the job without a hang. Returns the exit code.
// An Error of `body` is given to `report` on the lowest rank that has it. If every rank failed within two
// seconds all return the code of their own error; otherwise the failing rank ends the whole job with
// MPI_Abort (does not return). Of the ranks whose deadline passed, the one that printed the page reports.
int run_job(const LaunchEnvironment& environment, JobOptions options, const std::function<int(Job&)>& body,
            const std::function<void(const Error&)>& report);

}  // namespace hearth
