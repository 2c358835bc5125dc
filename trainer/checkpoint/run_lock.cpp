#include "trainer/checkpoint/run_lock.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/strict_json.h"

namespace hearth {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kLockName = "run.lock";
constexpr std::string_view kAttemptName =
    "run.attempt";  // outlives the lock, so that attempts are never reused
constexpr int64_t kMaxLockBytes = 64 * 1024;
// A lock file is empty between its creation and its first write, some microseconds. One that stays so was
// left by a job that died in between.
constexpr int kEmptyTries = 20;
constexpr auto kEmptyPause = std::chrono::milliseconds(50);
constexpr int kAcquireTries = 5;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string to_text(const LockHolder& holder) {
  return ordered_json{{"host", holder.host},       {"pid", holder.pid},       {"pid_start", holder.pid_start},
                      {"boot_id", holder.boot_id}, {"job_id", holder.job_id}, {"attempt", holder.attempt},
                      {"started", holder.started}}
             .dump(1) +
         "\n";
}

LockHolder holder_from_text(const std::string& text, const std::string& path) {
  const json root = parse_json_strict(text, path, {.kind = ErrorKind::InUse});
  LockHolder holder;
  try {
    holder = {root.at("host"),   root.at("pid"),     root.at("pid_start"), root.at("boot_id"),
              root.at("job_id"), root.at("attempt"), root.at("started")};
  } catch (const json::exception& error) {
    fail(ErrorKind::InUse, "{}: not a lock file of Hearth ({}); remove it if no job runs here", path,
         error.what());
  }
  return holder;
}

// The content of the lock, or "" where there is none.
std::string read_lock(FileSystem& fs, const std::string& path) {
  try {
    if (fs.exists(path)) return fs.read_text(path, kMaxLockBytes);
  } catch (const Error&) {
    if (fs.exists(path)) throw;  // else it was released between the two calls
  }
  return "";
}

std::string describe(const LockHolder& holder) {
  return fmt::format("{}on {} (pid {}, attempt {}, started {})",
                     holder.job_id.empty() ? "a job " : "job " + holder.job_id + " ", holder.host, holder.pid,
                     holder.attempt, holder.started);
}

// Certain only for a process of this host and this boot.
bool is_gone(const LockHolder& holder, const LockHolder& me) {
  if (holder.host != me.host || holder.boot_id != me.boot_id) return false;
  if (::kill(static_cast<pid_t>(holder.pid), 0) != 0 && errno == ESRCH) return true;
  return process_start(holder.pid) != holder.pid_start;  // the number was given to another process
}

// Takes the lock of a holder away. The rename makes sure that exactly this lock goes: had another job taken
// it over meanwhile, the content would differ, and it is put back.
void remove_lock_of(FileSystem& fs, const std::string& path, const std::string& content,
                    const LockHolder& me) {
  const std::string stale = fmt::format("{}.stale.{}", path, me.pid);
  fs.rename(path, stale);
  if (fs.read_text(stale, kMaxLockBytes) != content) {
    fs.rename(stale, path);
    fail(ErrorKind::InUse, "{}: another job took the run folder over at the same moment", path);
  }
  fs.remove(stale);
}

int64_t next_attempt(FileSystem& fs, const std::string& folder) {
  const std::string path = folder + "/" + std::string(kAttemptName);
  int64_t last = 0;
  if (fs.exists(path)) last = std::atoll(fs.read_text(path, kMaxLockBytes).c_str());
  return last + 1;
}

}  // namespace

// Field 22 of /proc/PID/stat. A killed process stays listed until its parent asks, which in a container
// without an init may be never. The name (field 2) may hold spaces and parentheses, so counting starts behind
// the last one.
int64_t process_start(int64_t pid) {
  const std::string line = first_line("/proc/" + std::to_string(pid) + "/stat");
  const size_t close = line.find_last_of(')');
  if (close == std::string::npos) return 0;
  std::istringstream fields(line.substr(close + 1));
  std::string state, field;
  fields >> state;
  if (state == "Z" || state == "X") return 0;
  for (int number = 4; number <= 22; ++number) fields >> field;
  return field.empty() ? 0 : std::stoll(field);
}

LockHolder this_process(const std::string& job_id) {
  LockHolder me;
  char host[256] = {};
  me.host = ::gethostname(host, sizeof(host) - 1) == 0 ? host : "localhost";
  me.pid = ::getpid();
  me.pid_start = process_start(me.pid);
  me.boot_id = first_line("/proc/sys/kernel/random/boot_id");
  me.job_id = job_id;
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32] = {};
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  me.started = text;
  return me;
}

std::unique_ptr<RunLock> RunLock::acquire(FileSystem& fs, Log& log, const std::string& run_folder,
                                          LockHolder me, TakeOver take_over) {
  fs.create_directories(run_folder);
  const std::string path = run_folder + "/" + std::string(kLockName);
  int empty = 0;
  for (int attempt = 0; attempt < kAcquireTries;) {
    std::string content = read_lock(fs, path);
    if (content.empty() && fs.exists(path) && ++empty < kEmptyTries) {
      std::this_thread::sleep_for(kEmptyPause);
      continue;
    }
    if (fs.exists(path)) {
      if (content.empty()) {
        log.warning("event=lock_taken_over path={} reason=\"left empty by a job that died\"", path);
      } else {
        const LockHolder holder = holder_from_text(content, path);
        const bool gone = is_gone(holder, me);
        HEARTH_CHECK(
            gone || take_over == TakeOver::Force, InUse,
            "run folder {} is in use by {}. Nothing was touched. Wait for it or stop it; if that machine is "
            "gone for good, --take-over",
            run_folder, describe(holder));
        log.warning("event=lock_taken_over path={} from=\"{}\" reason=\"{}\"", path, describe(holder),
                    gone ? "its process is gone" : "--take-over");
        me.attempt = std::max(me.attempt, holder.attempt + 1);
      }
      remove_lock_of(fs, path, content, me);
    }
    me.attempt = std::max(me.attempt, next_attempt(fs, run_folder));
    try {
      const auto file = fs.create(path, CreateMode::Exclusive);  // O_EXCL: of two jobs one gets it
      file->write(to_text(me));
      file->sync();
      file->close();
    } catch (const Error&) {
      if (!fs.exists(path) || read_lock(fs, path) == to_text(me)) throw;
      ++attempt;  // another job was faster: look at its lock
      continue;
    }
    std::unique_ptr<RunLock> lock(new RunLock(fs, path, me));
    lock->check();  // a job that found our file still empty may have taken it away
    fs.write_atomically(run_folder + "/" + std::string(kAttemptName), std::to_string(me.attempt) + "\n");
    return lock;
  }
  fail(ErrorKind::InUse, "{}: several jobs fight over this run folder", path);
}

void RunLock::check() const {
  const std::string content = read_lock(fs_, path_);
  if (content == to_text(me_)) return;
  HEARTH_CHECK(!content.empty(), InUse, "{} is gone: this job (attempt {}) no longer owns the run folder",
               path_, me_.attempt);
  const LockHolder holder = holder_from_text(content, path_);
  fail(ErrorKind::InUse,
       "the run folder was taken over by attempt {}: {}; this job (attempt {}) stops without writing",
       holder.attempt, describe(holder), me_.attempt);
}

RunLock::~RunLock() {
  try {
    check();
    fs_.remove(path_);
  } catch (const Error&) {
    // Not ours any more, or the disk is gone: the next start decides by the holder's data.
  }
}

}  // namespace hearth
