// A job that ends badly in the way its argument says; failing_job_test.sh runs it under mpirun and judges
// what the user would see. Prints an error as launch does: "error: MESSAGE" on stderr.
//   failing_job WAY [VICTIM [FOLDER]]    VICTIM: the rank that fails, 1 by default. FOLDER: with hang
//   reports.
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "parallel/bootstrap.h"

using namespace hearth;

namespace {

std::unique_ptr<Comm> world(Job& job, const char* name = "dp") {
  std::vector<int> ranks(static_cast<size_t>(job.control->world_size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return make_comm(job, {.group = name, .ranks = ranks, .cuda_device = {}, .timeout_s = {}});
}

// Never returns by itself.
void hang() {
  for (;;) ::pause();
}

// A large all_reduce with one rank missing after a first complete one; buffers die while the error unwinds.
void reduce_without(Job& job, int victim, const std::function<void()>& absent) {
  const auto comm = world(job);
  std::vector<float> data(3000000, 1.0f);
  comm->all_reduce(data.data(), 3000000, DType::F32, ReduceOp::Sum, "grad.bucket2")->wait();
  if (comm->rank() == victim) absent();
  const auto work = comm->all_reduce(data.data(), 3000000, DType::F32, ReduceOp::Sum, "grad.bucket3");
  work->wait();
}

// Three steps of three calls in two groups; in the third one the victim leaves out the call `skipped`.
void steps_without(Job& job, int victim, std::string_view skipped) {
  const auto dp = world(job), everyone = world(job, "all");
  std::vector<float> data(100000, 1.0f);
  for (int step = 0; step < 3; ++step) {
    const auto reduce = [&](Comm& comm, int64_t count, std::string_view site) {
      if (step == 2 && comm.rank() == victim && site == skipped) return;
      comm.all_reduce(data.data(), count, DType::F32, ReduceOp::Sum, site)->wait();
    };
    reduce(*dp, 100000, "grad.bucket0");
    reduce(*dp, 90000, "grad.bucket1");
    reduce(*everyone, 4, "step.totals");
  }
  job.control->barrier("end");
}

// Ends rank 0 by a signal once it has said where it is.
void die_after_answer(const std::string& folder) {
  std::error_code none;
  const auto size = [&] { return std::filesystem::file_size(folder + "/rank_0000", none); };
  while (size() == 0 || none) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ::raise(SIGKILL);
}

int body(Job& job, const std::string& how, int victim) {
  const int rank = job.control->rank();
  const std::map<std::string, std::function<void()>> ways{
      {"nothing", [] {}},
      {"preempted", [] {}},
      {"all_throw", [] { fail(ErrorKind::Config, "the same on all ranks"); }},
      {"each_throws", [&] { fail(ErrorKind::BadInput, "trouble of rank {}", rank); }},
      {"one_throws",
       [&] { reduce_without(job, victim, [] { fail(ErrorKind::BadInput, "shard 7 is torn"); }); }},
      {"one_hangs", [&] { reduce_without(job, victim, hang); }},
      {"one_killed", [&] { reduce_without(job, victim, [] { ::raise(SIGKILL); }); }},
      {"one_exits", [&] { reduce_without(job, victim, [] { ::_exit(1); }); }},
      {"one_stopped", [&] { reduce_without(job, victim, [] { ::raise(SIGSTOP); }); }},
      {"one_skips_a_bucket", [&] { steps_without(job, victim, "grad.bucket0"); }},
      {"one_skips_the_totals", [&] { steps_without(job, victim, "step.totals"); }},
      {"one_misses_a_vote",
       [&] {
         if (rank == victim) hang();
         job.control->vote(true, "", "checkpoint.commit");
       }},
      // The round is held, as nothing is heard of the victim (see told_to_end below) and its process lives;
      // the rank that would print at its end is gone by then.
      {"printer_dies", [&] { reduce_without(job, victim, hang); }},
      {"calls_differ", [&] {
         const auto comm = world(job);
         std::vector<float> data(100000);
         comm->all_reduce(data.data(), rank == 1 ? 100000 : 90000, DType::F32, ReduceOp::Sum, "grad.bucket0")
             ->wait();
       }}};
  ways.at(how)();
  return how == "preempted" ? exit_code(ErrorKind::Preempted) : 0;
}

volatile std::sig_atomic_t told_to_end = 0;

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::string how = argv[1], folder = argc > 3 ? argv[3] : "";
  const int victim = argc > 2 ? std::atoi(argv[2]) : 1;
  const auto environment = LaunchEnvironment::read([](const char* name) { return std::getenv(name); });
  // Short where the deadline is what ends the job; otherwise beyond the 2 s for which a failing rank looks
  // for company.
  const bool by_deadline = how == "one_hangs" || how == "printer_dies" || how == "one_misses_a_vote" ||
                           how == "one_stopped" || how == "one_skips_the_totals";
  const auto report = [](const Error& error) { fmt::print(stderr, "error: {}\n", error.message()); };
  const auto watched = [&](Job& job) {
    if (!folder.empty()) {
      ::signal(SIGTERM, [](int) { told_to_end = 1; });
      watch_for_hangs(job,
                      {.folder = folder,
                       .places = {},
                       .print = [](std::string_view page) { fmt::print(stderr, "{}", page); },
                       .told_to_end =
                           [deaf = how == "printer_dies" && job.control->rank() == victim] {
                             if (deaf) hang();
                             return told_to_end != 0;
                           }},
                      report);
      if (how == "printer_dies" && job.control->rank() == 0) std::thread(die_after_answer, folder).detach();
    }
    return body(job, how, victim);
  };
  return run_job(environment, {.timeout_s = by_deadline ? 2.0 : 60.0, .on_fatal = {}}, watched, report);
}
