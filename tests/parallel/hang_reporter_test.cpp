// The reporter between processes, without MPI or a launcher: ranks are forked, meet in shared memory, and may
// claim to be on hosts of their own, so that nobody can ask the kernel about them.
#include "parallel/hang_reporter.h"

#include <fmt/core.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

using namespace hearth;
using namespace std::chrono_literals;
namespace bdata = boost::unit_test::data;

namespace {

constexpr int kMaxRanks = 4, kMaxCalls = 16, kMaxText = 1024;
// Ends a child that hangs; beyond any time that a case takes.
constexpr unsigned kChildS = 60;

struct Shared {
  std::atomic<int> arrived[kMaxCalls], pages, reports, ready;
  char texts[kMaxCalls][kMaxRanks][kMaxText], page[16384];
};

class SharedControl final : public ControlPlane {
 public:
  SharedControl(Shared& shared, int rank, int ranks, std::string host)
      : shared_(shared), rank_(rank), ranks_(ranks), host_(std::move(host)) {}
  int rank() const override { return rank_; }
  int world_size() const override { return ranks_; }
  int local_rank() const override { return rank_; }
  int local_world_size() const override { return ranks_; }
  const std::string& host() const override { return host_; }
  std::vector<std::string> all_gather(std::string_view mine, std::string_view) override {
    const int call = calls_++;
    std::memcpy(shared_.texts[call][rank_], mine.data(), mine.size());
    ++shared_.arrived[call];
    while (shared_.arrived[call] < ranks_) std::this_thread::sleep_for(1ms);
    std::vector<std::string> all;
    for (int r = 0; r < ranks_; ++r) all.emplace_back(shared_.texts[call][r]);
    return all;
  }
  std::string broadcast(std::string_view, std::string_view, int) override { return ""; }
  void barrier(std::string_view site) override { all_gather("", site); }
  void set_timeout(double) override {}
  FailureMeeting meet_after_error(std::string_view, double) override { return {false, true}; }
  [[noreturn]] void abort(int code) override { ::_exit(code); }

 private:
  Shared& shared_;
  int rank_, ranks_, calls_ = 0;
  std::string host_;
};

struct Rank {
  int rank;
  Shared& shared;
  FlightRecorder& recorder;
  HangReporter& reporter;
  std::string folder;

  // As a communicator does when its deadline passes.
  void raise(ErrorKind kind = ErrorKind::Timeout) const {
    recorder.hold(recorder.begin({.op = "all_reduce", .site = "grad.bucket3", .group = "dp", .seq = 5}));
    recorder.raise_alarm(kind, "rank 1 has not entered it");
  }
  bool explain(ErrorKind kind = ErrorKind::Timeout) const {
    const bool speaks = reporter.explain(Error(kind, "trouble"));
    shared.reports += speaks ? 1 : 0;
    return speaks;
  }
};

void sleep_for_ever() {
  for (;;) ::pause();
}

// A job of forked ranks; what a rank's function returns is its exit code.
class TestJob {
 public:
  struct Options {
    bool one_host = true;
    std::function<void(int rank)> before_print = [](int) {};
    std::function<bool(int rank)> told = [](int) { return false; };
  };
  TestJob(int ranks, const Options& options, const std::function<int(const Rank&)>& body) : pids_() {
    void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    BOOST_TEST_REQUIRE(memory != MAP_FAILED);
    shared_ = new (memory) Shared();
    std::string path = (std::filesystem::temp_directory_path() / "hang_reporter_XXXXXX").string();
    BOOST_TEST_REQUIRE(::mkdtemp(path.data()) != nullptr);
    folder_ = path;
    for (int r = 0; r < ranks; ++r) {
      const pid_t pid = ::fork();
      if (pid == 0) run_child(r, ranks, options, body);
      pids_.push_back(pid);
    }
  }
  ~TestJob() {
    for (int r = 0; r < static_cast<int>(pids_.size()); ++r) kill(r);
    std::filesystem::remove_all(folder_);
    ::munmap(shared_, sizeof(Shared));
  }
  // Exit code, or minus the signal that ended it.
  int code(int rank) {
    pid_t& pid = pids_[static_cast<size_t>(rank)];
    int status = 0;
    BOOST_TEST_REQUIRE(::waitpid(pid, &status, 0) == pid);
    pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  void kill(int rank) {
    if (pids_[static_cast<size_t>(rank)] == 0) return;
    ::kill(pids_[static_cast<size_t>(rank)], SIGKILL);
    code(rank);
  }
  Shared& shared() { return *shared_; }
  std::string page() const { return shared_->page; }
  std::string hang_folder() const { return folder_ + "/hang"; }

 private:
  [[noreturn]] void run_child(int rank, int ranks, const Options& options,
                              const std::function<int(const Rank&)>& body) {
    ::alarm(kChildS);
    int code = 99;
    try {
      SharedControl control(*shared_, rank, ranks, options.one_host ? "here" : fmt::format("gpu{}", rank));
      FlightRecorder recorder;
      const auto print = [&](std::string_view page) {
        options.before_print(rank);
        std::memcpy(shared_->page, page.data(), std::min(page.size(), sizeof(shared_->page) - 1));
        ++shared_->pages;
      };
      const auto told = [&] { return options.told(rank); };
      HangReporter reporter(control, recorder, {hang_folder(), {}, print, told});
      ++shared_->ready;
      code = body({rank, *shared_, recorder, reporter, hang_folder()});
    } catch (const Error& error) {
      fmt::print(stderr, "rank {}: {}\n", rank, error.message());
    }
    ::_exit(code);
  }
  Shared* shared_;
  std::string folder_;
  std::vector<pid_t> pids_;
};

bool has_content(const std::string& path) {
  std::error_code none;
  const auto size = std::filesystem::file_size(path, none);
  return !none && size > 0;
}

void check_says(const TestJob& job, const std::string& text) {
  BOOST_CHECK_MESSAGE(job.page().find(text) != std::string::npos, "no '" << text << "' in\n" << job.page());
}

// The rank that prints is busy in between for longer than the others stay once the page is out.
BOOST_AUTO_TEST_CASE(others_wait_until_the_page_is_printed) {
  TestJob::Options options;
  options.before_print = [](int) { std::this_thread::sleep_for(1300ms); };
  TestJob job(2, options, [](const Rank& me) {
    if (me.rank == 1) sleep_for_ever();
    me.raise();
    me.explain();
    sleep_for_ever();
    return 0;
  });
  BOOST_TEST(job.code(1) == 7);
  BOOST_TEST(job.shared().pages == 1);
  BOOST_TEST(job.code(0) == 7);
  BOOST_TEST(job.shared().reports == 1);
  check_says(job, "rank 1 is missing");
}

// Rank 2 cannot answer, which holds the round; rank 0, whose page it would be, ends once it has answered. On
// a host of its own nobody sees that, and rank 1 has to wait for the page before it prints.
BOOST_DATA_TEST_CASE(a_rank_that_ends_before_it_prints_is_replaced, bdata::make({true, false}), one_host) {
  TestJob::Options options;
  options.one_host = one_host;
  options.told = [](int rank) {
    if (rank == 2) sleep_for_ever();
    return false;
  };
  const auto begun = std::chrono::steady_clock::now();
  TestJob job(3, options, [](const Rank& me) {
    if (me.rank == 2) sleep_for_ever();
    me.raise();
    while (me.rank == 0)
      if (has_content(me.folder + "/rank_0000")) ::_exit(9);
    me.explain();
    sleep_for_ever();
    return 0;
  });
  BOOST_TEST(job.code(1) == 7);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  BOOST_TEST_MESSAGE(
      fmt::format("over after {:.1f} s, at most {:.1f} s by its head", took.count(), HangTimes(3).end_s));
  BOOST_TEST(job.code(0) == 9);
  BOOST_TEST(job.shared().pages == 1);
  BOOST_TEST(job.shared().reports == 1);
  check_says(job, "rank 2 does not answer");
}

BOOST_AUTO_TEST_CASE(without_a_page_every_rank_reports_its_own_error) {
  TestJob::Options options;
  options.one_host = false;
  options.before_print = [](int) { ::_exit(9); };
  TestJob job(3, options, [](const Rank& me) {
    me.raise();
    me.explain();
    sleep_for_ever();
    return 0;
  });
  const int codes[] = {job.code(0), job.code(1), job.code(2)};
  BOOST_TEST(std::count(codes, codes + 3, 9) ==
             1);  // the lowest, or one that had not seen its answer in time
  BOOST_TEST(std::count(codes, codes + 3, 7) == 2);
  BOOST_TEST(job.shared().pages == 0);
  BOOST_TEST(job.shared().reports == 2);
}

BOOST_AUTO_TEST_CASE(a_rank_with_an_error_of_its_own_does_not_print) {
  TestJob job(2, {}, [](const Rank& me) {
    if (me.rank == 0) {
      me.explain(ErrorKind::BadInput);
      ++me.shared.ready;
      sleep_for_ever();  // as where MPI_Abort hangs
    }
    while (me.shared.ready < 3) std::this_thread::sleep_for(1ms);
    me.raise(ErrorKind::Peer);
    me.explain(ErrorKind::Peer);
    sleep_for_ever();
    return 0;
  });
  BOOST_TEST(job.code(0) == 8);
  BOOST_TEST(job.code(1) == 8);
  BOOST_TEST(job.shared().pages == 1);
  check_says(job, "rank 0 (host here");
  check_says(job, "ends because of its own error: trouble");
}

// Over NCCL there is a watchdog per communicator, and each of them ends the process when explain() is back.
BOOST_AUTO_TEST_CASE(one_caller_of_a_process_reports_and_has_time_for_it) {
  TestJob job(2, {}, [](const Rank& me) {
    if (me.rank == 1) sleep_for_ever();
    me.raise();
    std::vector<std::thread> watchdogs;
    for (int i = 0; i < 4; ++i)
      watchdogs.emplace_back([&] {
        if (!me.reporter.explain(Error(ErrorKind::Timeout, "trouble"))) ::_exit(7);
        std::this_thread::sleep_for(200ms);
        ++me.shared.reports;
        sleep_for_ever();
      });
    sleep_for_ever();
    return 0;
  });
  BOOST_TEST(job.code(0) == 7);
  BOOST_TEST(job.code(1) == 7);
  BOOST_TEST(job.shared().pages == 1);
  BOOST_TEST(job.shared().reports == 1);
}

BOOST_DATA_TEST_CASE(a_rank_that_only_sees_the_alarm_ends_with_its_code, bdata::make({7, 8}), code) {
  TestJob job(2, {}, [&](const Rank& me) {
    if (me.rank == 0) me.raise(code == 8 ? ErrorKind::Peer : ErrorKind::Timeout);
    sleep_for_ever();
    return 0;
  });
  BOOST_TEST(job.code(1) == code);
  BOOST_TEST(job.code(0) == code);
}

// A launcher sends SIGTERM to the rest when a rank ends with 75, and MPI_Finalize may not be over there.
BOOST_DATA_TEST_CASE(only_an_end_that_nobody_expects_makes_a_page, bdata::make({true, false}), expected) {
  TestJob::Options options;
  options.told = [](int rank) { return rank == 0; };
  TestJob job(2, options, [&](const Rank& me) {
    if (expected) me.reporter.expect_end();
    ++me.shared.ready;
    while (me.shared.ready < 4) std::this_thread::sleep_for(1ms);
    if (me.rank == 0) std::this_thread::sleep_for(expected ? 1000ms : 30000ms);
    return 75;
  });
  BOOST_TEST(job.code(0) == (expected ? 75 : 8));
  BOOST_TEST(job.code(1) == 75);
  BOOST_TEST(job.shared().pages == (expected ? 0 : 1));
  if (!expected) check_says(job, "its process has ended");
}

// A save after a SIGTERM can last; meanwhile no rank reads the others' answers.
BOOST_AUTO_TEST_CASE(a_run_that_was_told_to_end_leaves_answers_alone) {
  TestJob::Options options;
  options.told = [](int) { return true; };
  TestJob job(2, options, [](const Rank&) {
    sleep_for_ever();
    return 0;
  });
  while (job.shared().ready < 2) std::this_thread::sleep_for(1ms);
  const int watch = ::inotify_init1(IN_NONBLOCK);
  BOOST_TEST_REQUIRE(::inotify_add_watch(watch, job.hang_folder().c_str(), IN_OPEN) >= 0);
  int alarm_looks = 0, answer_looks = 0;
  alignas(inotify_event) char buffer[4096];
  const auto until = std::chrono::steady_clock::now() + 2500ms;
  while (std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(2ms);  // equal events that nobody has read yet become one
    const ssize_t got = ::read(watch, buffer, sizeof(buffer));
    for (ssize_t at = 0; at < got;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
      const std::string name = event->len > 0 ? event->name : "";
      alarm_looks += name == "alarm" ? 1 : 0;
      answer_looks += name.starts_with("rank_") ? 1 : 0;
      at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
    }
  }
  ::close(watch);
  BOOST_TEST_MESSAGE(fmt::format("2 ranks in 2.5 s: {} looks at the alarm", alarm_looks));
  BOOST_TEST(answer_looks == 0);
  BOOST_TEST(alarm_looks > 0);
  // 1.5 s at every tick of 50 ms, then twice a second; at every tick it would be 100.
  BOOST_TEST(alarm_looks < 80);
  BOOST_TEST(job.shared().pages == 0);
}

BOOST_AUTO_TEST_CASE(a_good_end_leaves_nothing) {
  TestJob job(3, {}, [](const Rank& me) {
    me.reporter.expect_end();
    return 0;
  });
  for (int r = 0; r < 3; ++r) BOOST_TEST(job.code(r) == 0);
  BOOST_TEST(job.shared().pages == 0);
}

// The sum in the head of hang_reporter.h, and what the file server has to bear.
BOOST_AUTO_TEST_CASE(every_size_of_job_ends_within_5_s) {
  for (const int ranks : {2, 8, 16, 17, 32, 64, 512, 4096}) {
    const HangTimes times(ranks);
    BOOST_TEST(times.end_s <= 5.0);
    BOOST_TEST(times.answer_s >= times.look_s + 1.0);
    BOOST_TEST(ranks / times.look_s <= std::max(32.0, ranks / 2.0));
  }
  BOOST_TEST(HangTimes(16).look_s == 0.5);
  BOOST_TEST(HangTimes(512).look_s == 2.0);
}

}  // namespace
