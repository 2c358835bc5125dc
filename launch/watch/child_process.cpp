#include "launch/watch/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>

#include "base/error.h"

namespace hearth {
namespace {

constexpr auto kPollPause = std::chrono::milliseconds(20);  // a step takes seconds to days
constexpr std::streamoff kMaxTail = 4096;

// Between fork and exec: only what is safe there, for other threads of the parent may hold any lock.
[[noreturn]] void become(char* const* argv, const char* output, const char* log, pid_t parent) {
  ::setpgid(0, 0);  // Ctrl-C of a terminal reaches the watcher alone, which passes it on once
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int in = ::open("/dev/null", O_RDONLY);
  const int out = ::open(output, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const int err = ::open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (in < 0 || out < 0 || err < 0 || ::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(err, 2) < 0)
    ::_exit(127);
  ::execvp(argv[0], argv);
  const char* reason = strerrordesc_np(errno);
  for (const char* part : {"cannot start ", static_cast<const char*>(argv[0]), ": ", reason, "\n"})
    if (::write(2, part, std::strlen(part)) < 0) break;
  ::_exit(127);
}

std::streamoff size_of(const std::string& path) {
  std::ifstream file(path, std::ios::ate | std::ios::binary);
  return file ? static_cast<std::streamoff>(file.tellg()) : 0;
}

std::string tail(const std::string& path, std::streamoff begin) {
  std::ifstream file(path, std::ios::binary);
  const std::streamoff size = size_of(path);
  file.seekg(std::max(begin, size - kMaxTail));
  std::string text(std::istreambuf_iterator<char>(file), {});
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

class ProcessRunner final : public ChildRunner {
 public:
  explicit ProcessRunner(std::function<bool()> stop_requested) : stop_requested_(std::move(stop_requested)) {}

  ChildResult run(const ChildCommand& command) override {
    std::vector<std::string> words = command.words;
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const std::streamoff log_begin = size_of(command.log);
    const pid_t parent = ::getpid();
    const pid_t child = ::fork();
    HEARTH_CHECK(child >= 0, Io, "cannot fork: {}", std::strerror(errno));
    if (child == 0) become(argv.data(), command.output.c_str(), command.log.c_str(), parent);
    const int status = wait_for(child);
    ChildResult result;
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.last_lines = tail(command.log, log_begin);
    HEARTH_CHECK(result.code != 127, Io, "{} (log {})",
                 result.last_lines.empty() ? "cannot start " + words.front() : result.last_lines,
                 command.log);
    return result;
  }

 private:
  int wait_for(pid_t child) const {
    bool told = false;
    for (int status = 0;;) {
      const pid_t ended = ::waitpid(child, &status, WNOHANG);
      if (ended == child) return status;
      HEARTH_CHECK(ended == 0 || errno == EINTR, Io, "cannot wait for a child: {}", std::strerror(errno));
      if (!told && stop_requested_()) {
        ::kill(child, SIGTERM);  // not to its group: launch/mpirun.sh tells its ranks itself
        told = true;
      }
      std::this_thread::sleep_for(kPollPause);
    }
  }
  std::function<bool()> stop_requested_;
};

}  // namespace

std::unique_ptr<ChildRunner> make_process_runner(std::function<bool()> stop_requested) {
  return std::make_unique<ProcessRunner>(std::move(stop_requested));
}

}  // namespace hearth
