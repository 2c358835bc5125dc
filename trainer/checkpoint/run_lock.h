// One writer per run folder (contract C9): <run>/run.lock, made with O_EXCL, says who holds the folder. Never
// flock, which network file systems treat as they like. Held by rank 0 of a job for its whole life. A holder
// on the same host and boot whose process is gone is taken over with a notice; any other holder only with
// TakeOver::Force (--take-over). The holder re-reads the lock before each commit, so a job that was taken
// over while it slept stops instead of writing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/file_system.h"
#include "base/log.h"

namespace hearth {

struct LockHolder {
  std::string host;
  int64_t pid = 0;
  int64_t pid_start = 0;  // start time of the process in clock ticks after boot: tells a reused pid
  std::string boot_id;
  std::string job_id;   // of the scheduler; may be empty
  int64_t attempt = 0;  // counts the jobs that held the folder, from 1; never reused
  std::string started;  // for people; no decision looks at it
  bool operator==(const LockHolder&) const = default;
};

// This process, without an attempt. `job_id` comes from launch (SLURM_JOB_ID).
LockHolder this_process(const std::string& job_id);

// When process `pid` of this host started, in clock ticks after boot; 0 where it does not run (a zombie does
// not).
int64_t process_start(int64_t pid);

enum class TakeOver { DeadOnly, Force };

class RunLock {
 public:
  // Throws Error{InUse} that names the holder. `me` is this_process(); tests pass others.
  static std::unique_ptr<RunLock> acquire(FileSystem& fs, Log& log, const std::string& run_folder,
                                          LockHolder me, TakeOver take_over);
  ~RunLock();  // releases if it is still ours; never throws
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  int64_t attempt() const { return me_.attempt; }
  const LockHolder& holder() const { return me_; }
  // Throws Error{InUse} "taken over by attempt N" unless the lock file is still ours.
  void check() const;

 private:
  RunLock(FileSystem& fs, std::string path, LockHolder me)
      : fs_(fs), path_(std::move(path)), me_(std::move(me)) {}
  FileSystem& fs_;
  std::string path_;
  LockHolder me_;
};

}  // namespace hearth
