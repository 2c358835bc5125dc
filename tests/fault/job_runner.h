// Starts a job under mpirun in a session of its own, waits for it or kills it whole, and reads what it said.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace hearth {

inline std::string environment_text(const char* name) {
  const char* value = std::getenv(name);
  HEARTH_CHECK(value != nullptr, Usage, "{} is not set: run this test through ctest", name);
  return value;
}

inline std::string file_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Processes of session `session` that are not zombies. Only sessions that this test started are looked at.
inline std::vector<pid_t> processes_of_session(pid_t session) {
  std::vector<pid_t> out;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = file_text("/proc/" + name + "/stat");
    const size_t close = stat.find_last_of(')');
    if (close == std::string::npos) continue;
    std::istringstream fields(stat.substr(close + 1));
    std::string state;
    long parent = 0, group = 0, found = 0;
    fields >> state >> parent >> group >> found;
    if (found == session && state != "Z") out.push_back(static_cast<pid_t>(std::stol(name)));
  }
  return out;
}

class RunningJob {
 public:
  // mpirun.sh RANKS PROGRAM ARGS..., with HEARTH_FAULT=`fault`; output goes to `log`.
  RunningJob(int ranks, const std::vector<std::string>& command, const std::string& fault,
             const std::string& log) {
    std::vector<std::string> words{environment_text("HEARTH_TEST_MPIRUN"), std::to_string(ranks)};
    words.insert(words.end(), command.begin(), command.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    HEARTH_CHECK(pid_ >= 0, Io, "cannot fork");
    if (pid_ != 0) return;
    ::setsid();
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const int in = ::open("/dev/null", O_RDONLY);
    ::dup2(in, 0);
    ::dup2(out, 1);
    ::dup2(out, 2);
    ::setenv("HEARTH_FAULT", fault.c_str(), 1);
    // A killed mpirun leaves its shared memory and session files behind; here they go with the test's folder.
    const std::string folder = log.substr(0, log.find_last_of('/'));
    ::setenv("OMPI_MCA_btl_vader_backing_directory", folder.c_str(), 1);
    ::setenv("OMPI_MCA_orte_tmpdir_base", folder.c_str(), 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~RunningJob() {
    if (pid_ > 0) kill_all();
  }
  RunningJob(const RunningJob&) = delete;
  RunningJob& operator=(const RunningJob&) = delete;

  // The exit status, 128 + signal where it was killed.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    reap_session();
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // kill -9 of mpirun and every rank at once, as a power switch would.
  void kill_all() {
    for (const pid_t process : processes_of_session(pid_)) ::kill(process, SIGKILL);
    wait();
  }
  bool ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == pid_;
  }

 private:
  // Ranks die a moment after mpirun; the next attempt must not meet them. Bounded: 10 s, then they are
  // killed.
  void reap_session() const {
    for (int i = 0; i < 1000 && !processes_of_session(pid_).empty(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    for (const pid_t process : processes_of_session(pid_)) ::kill(process, SIGKILL);
  }
  pid_t pid_ = -1;
};

}  // namespace hearth
