// A job that ends badly in the way its argument says; failing_job_test.sh runs it under mpirun and judges
// what the user would see. Prints an error as launch does: "error: MESSAGE" on stderr.
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"

using namespace hearth;

namespace {

std::unique_ptr<Comm> world(Job& job) {
  std::vector<int> ranks(static_cast<size_t>(job.control->world_size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return make_comm(job, {.group = "dp", .ranks = ranks, .cuda_device = {}, .timeout_s = {}});
}

// Never returns by itself.
void hang() {
  for (;;) ::pause();
}

// A large all_reduce with one rank missing after a first complete one; buffers die while the error unwinds.
void reduce_without(Job& job, const std::function<void()>& absent) {
  const auto comm = world(job);
  std::vector<float> data(3000000, 1.0f);
  comm->all_reduce(data.data(), 3000000, DType::F32, ReduceOp::Sum, "grad.bucket2")->wait();
  if (comm->rank() == 1) absent();
  const auto work = comm->all_reduce(data.data(), 3000000, DType::F32, ReduceOp::Sum, "grad.bucket3");
  work->wait();
}

int body(Job& job, const std::string& how) {
  const int rank = job.control->rank();
  const std::map<std::string, std::function<void()>> ways{
      {"nothing", [] {}},
      {"all_throw", [] { fail(ErrorKind::Config, "the same on all ranks"); }},
      {"each_throws", [&] { fail(ErrorKind::BadInput, "trouble of rank {}", rank); }},
      {"one_throws", [&] { reduce_without(job, [] { fail(ErrorKind::BadInput, "shard 7 is torn"); }); }},
      {"one_hangs", [&] { reduce_without(job, hang); }},
      {"one_killed", [&] { reduce_without(job, [] { ::raise(SIGKILL); }); }},
      {"one_misses_a_vote",
       [&] {
         if (rank == 1) hang();
         job.control->vote(true, "", "checkpoint.commit");
       }},
      {"calls_differ", [&] {
         const auto comm = world(job);
         std::vector<float> data(100000);
         comm->all_reduce(data.data(), rank == 1 ? 100000 : 90000, DType::F32, ReduceOp::Sum, "grad.bucket0")
             ->wait();
       }}};
  ways.at(how)();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string how = argv[1];
  const auto environment = LaunchEnvironment::read([](const char* name) { return std::getenv(name); });
  // Short where the deadline is what ends the job; otherwise beyond the 2 s for which a failing rank looks
  // for company.
  const double timeout_s = how == "one_hangs" || how == "one_misses_a_vote" ? 2 : 60;
  return run_job(
      environment, {.timeout_s = timeout_s, .on_fatal = {}}, [&](Job& job) { return body(job, how); },
      [](const Error& error) { fmt::print(stderr, "error: {}\n", error.message()); });
}
