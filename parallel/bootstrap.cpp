#include "parallel/bootstrap.h"

#include <charconv>

#include "parallel/mpi_comm.h"
#include "parallel/mpi_control_plane.h"
#include "parallel/single_comm.h"
#if HEARTH_NCCL
#include "parallel/nccl_comm.h"
#endif

namespace hearth {
namespace {

// How long a failing rank waits to see whether all others fail too.
constexpr double kMeetingS = 2.0;

int64_t count_or_one(const std::optional<std::string>& text) {
  int64_t value = 1;
  if (text) std::from_chars(text->data(), text->data() + text->size(), value);
  return value;
}

// Several tasks, but no PMIx: Open MPI would print its own page and abort, or start N jobs of one rank each.
void check_launcher(const LaunchEnvironment& environment) {
  const int64_t tasks = count_or_one(environment.slurm_step_num_tasks);
  HEARTH_CHECK(
      tasks <= 1, Config,
      "srun started {} tasks but not with PMIx, so the ranks cannot find each other: use srun --mpi=pmix "
      "(srun --mpi=list shows whether Slurm has it), or mpirun inside the allocation",
      tasks);
  const int64_t pmi_size = count_or_one(environment.pmi_size);
  HEARTH_CHECK(
      pmi_size <= 1, Config,
      "a launcher with PMI started {} tasks, this program is built with {}, which needs PMIx: use the mpirun "
      "of that MPI, or srun --mpi=pmix",
      pmi_size, mpi_library_version());
}

std::unique_ptr<Comm> make_mpi_comm(Job& job, const CommOptions& options, double timeout_s) {
  auto& plane = dynamic_cast<MpiControlPlane&>(*job.control);
  plane.barrier("make_comm." + options.group);  // MPI_Comm_split has no deadline, this has
  std::vector<int> ranks = options.ranks;
  for (int& rank : ranks) rank = plane.job_rank(rank);
  auto comm = std::make_unique<MpiComm>(plane.session(), *job.recorder,
                                        MpiComm::Options{.group = options.group,
                                                         .ranks = std::move(ranks),
                                                         .parent = plane.communicator(),
                                                         .timeout_s = timeout_s});
  if (options.ranks.size() == 1) return make_single_comm(options.group);
  return comm;
}

std::unique_ptr<Comm> make_cuda_comm(Job& job, const CommOptions& options, double timeout_s) {
#if HEARTH_NCCL
  return make_nccl_comm(*job.control, *job.recorder,
                        {.group = options.group,
                         .ranks = options.ranks,
                         .device = *options.cuda_device,
                         .timeout_s = timeout_s,
                         .max_ctas = options.max_ctas,
                         .on_fatal = job.options.on_fatal});
#else
  (void)job, (void)timeout_s;
  fail(ErrorKind::Config,
       "group {}: device {} was asked for, but this program is built without CUDA and NCCL", options.group,
       *options.cuda_device);
#endif
}

}  // namespace

LaunchEnvironment LaunchEnvironment::read(const std::function<const char*(const char*)>& get) {
  const auto value = [&](const char* name) {
    const char* text = get(name);
    return text == nullptr ? std::nullopt : std::optional<std::string>(text);
  };
  return {.ompi_comm_world_size = value("OMPI_COMM_WORLD_SIZE"),
          .pmix_rank = value("PMIX_RANK"),
          .pmi_size = value("PMI_SIZE"),
          .slurm_step_num_tasks = value("SLURM_STEP_NUM_TASKS")};
}

Job start_job(const LaunchEnvironment& environment, JobOptions options) {
  Job job{.options = std::move(options),
          .recorder = std::make_shared<FlightRecorder>(),
          .hang = nullptr,
          .control = nullptr,
          .launcher = "single"};
  if (!environment.ompi_comm_world_size && !environment.pmix_rank) {
    check_launcher(environment);
    job.control = make_single_control_plane();
    return job;
  }
  job.launcher = environment.ompi_comm_world_size ? "mpirun" : "srun (PMIx)";
  job.control = std::make_unique<MpiControlPlane>(*job.recorder, job.options.timeout_s);
  const int64_t promised = environment.ompi_comm_world_size ? count_or_one(environment.ompi_comm_world_size)
                                                            : count_or_one(environment.slurm_step_num_tasks);
  HEARTH_CHECK(
      promised <= 1 || job.control->world_size() == promised, Config,
      "{} started {} tasks, but MPI sees a world of {}: the launcher and {} do not speak the same PMIx; "
      "use the mpirun that belongs to this MPI",
      job.launcher, promised, job.control->world_size(), mpi_library_version());
  return job;
}

Job split_job(Job& whole, const std::string& name, int first, int count) {
  auto* plane = dynamic_cast<MpiControlPlane*>(whole.control.get());
  HEARTH_REQUIRE(plane != nullptr, "part '{}': a job of one rank has no parts", name);
  return {.options = whole.options,
          .recorder = whole.recorder,
          .hang = nullptr,
          .control = std::make_unique<MpiControlPlane>(*plane, name, first, count),
          .launcher = whole.launcher};
}

std::unique_ptr<Comm> make_comm(Job& job, const CommOptions& options) {
  HEARTH_REQUIRE(!options.ranks.empty(), "group {}: no ranks", options.group);
  const double timeout_s = options.timeout_s.value_or(job.options.timeout_s);
  if (options.cuda_device) return make_cuda_comm(job, options, timeout_s);
  if (job.control->world_size() == 1) return make_single_comm(options.group);
  return make_mpi_comm(job, options, timeout_s);
}

void watch_for_hangs(Job& job, HangOptions options, const std::function<void(const Error&)>& report) {
  if (job.control->world_size() == 1) return;
  job.hang = std::make_unique<HangReporter>(*job.control, *job.recorder, std::move(options));
  job.options.on_fatal = [hang = job.hang.get(), report](const Error& error, const FlightRecorder&) {
    if (hang->explain(error)) report(error);
  };
}

int run_job(const LaunchEnvironment& environment, JobOptions options, const std::function<int(Job&)>& body,
            const std::function<void(const Error&)>& report) {
  Job job = start_job(environment, std::move(options));
  const auto end_after = [&](const Error& error) {
    const FailureMeeting meeting = job.control->meet_after_error(error.what(), kMeetingS);
    const bool alone = !meeting.all_failed;
    // An error that all ranks have needs no explanation.
    if (alone && job.hang ? job.hang->explain(error) : meeting.speak) report(error);
    const auto alarm = job.recorder->alarm();
    const int code = exit_code(alone && alarm ? alarm->kind : error.kind());
    if (alone) job.control->abort(code);
    if (job.hang) job.hang->expect_end();
    return code;
  };
  try {
    const int code = body(job);
    // A launcher ends the other ranks when one returns a code that is not 0.
    if (job.hang) job.hang->expect_end();
    return code;
  } catch (const Error& error) {
    return end_after(error);
  } catch (const std::exception& error) {
    return end_after(Error(ErrorKind::Internal, error.what()));
  }
}

}  // namespace hearth
