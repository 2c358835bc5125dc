// The loop of `hearth watch`: inbox -> waiting files -> run -> shards -> training -> candidate -> evaluation
// -> release or rejection. One step at a time; every step ends in one commit of the state (watch_state.h) and
// may be repeated from its beginning, so a kill at any point costs at most the step that it interrupted. Not
// thread-safe; holds no lock by itself (the command does).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "launch/watch/child_process.h"
#include "launch/watch/inbox.h"
#include "launch/watch/releases.h"
#include "launch/watch/watch_config.h"
#include "launch/watch/watch_state.h"

namespace hearth {

// Points where a test kills (HEARTH_FAULT), in the order of one round. Each lies between something that was
// done and the record of it, or between two records.
inline constexpr std::string_view kWatchPoints[] = {
    "watch.base.exported",  "watch.promote.link_made", "watch.base.linked",     "watch.accept.copied",
    "watch.state_written",  "watch.journal_written",   "watch.accept.recorded", "watch.accept.removed",
    "watch.plan",           "watch.ingest.prepared",   "watch.ingest.bad_file", "watch.train.ended",
    "watch.export.ended",   "watch.evaluate.ended",    "watch.judged",          "watch.promote.renamed",
    "watch.promote.linked", "watch.prune.removed",     "watch.round_ended"};

enum class WatchMode { Forever, UntilIdle };

class WatchLoop {
 public:
  struct Context {
    const WatchConfig& config;
    FileSystem& fs;
    Clock& clock;
    ChildRunner& children;
    Log& log;
    std::string program;  // hearth
    AtPoint at_point;
    std::function<bool()> stop_requested;
    std::function<void()> check_lock;
  };
  explicit WatchLoop(Context context);

  // Returns when nothing is left to do (UntilIdle). Throws Error{Preempted} when asked to stop, and for a
  // step that failed an Error whose exit code is the child's.
  void run(WatchMode mode);
  // Ends the run that is under way as a rejected one; does nothing where there is none. For a run that cannot
  // go on.
  void give_up_run();
  const WatchState& state() const { return store_.state(); }

 private:
  // watch_loop.cpp: collecting
  void check_serving();
  bool collect();  // true: something was done
  bool accept_files();
  void finish_removals();
  void plan_run(const std::string& reason);
  // run_steps.cpp
  void ingest();
  void reject_bad_files(const ChildResult& failure);
  void return_batch(const std::string& reason);
  void freeze_training();
  void train();
  void export_candidate();
  void evaluate();
  double evaluate_one(const std::string& model_path, const std::string& dataset, int64_t& tokens);
  // publish_steps.cpp
  void release_base();
  void promote();
  void reject(const std::string& reason);
  void prune();

  struct Step {
    std::string name;
    std::vector<std::string> words;  // behind the program
    std::vector<int> expected;       // exit codes beside 0 that the caller deals with
    bool launched = false;           // under config.launcher
  };
  ChildResult run_step(const Step& step);
  std::string output_of(const std::string& step) const;  // file with its standard output

  void step();
  void stop_if_asked() const;
  void point(std::string_view name) const {
    if (c_.at_point) c_.at_point(name);
  }
  void commit(WatchState next, std::vector<LineageEvent> events = {});
  std::string path(const std::string& kind, const std::string& name) const {
    return c_.config.workspace + "/" + kind + "/" + name;
  }
  std::string batch_folder() const;  // of accepted files that wait, or are in the run

  Context c_;
  WatchStore store_;
  std::set<std::string> used_;  // digests that must not be used again
  SettledFiles inbox_;
};

// What the next step would be, for people. Writes nothing and needs no lock.
std::vector<std::string> describe_next(FileSystem& fs, Clock& clock, const WatchConfig& config);

// The overrides of a training, without those that depend on the amount of data. For the start, too, which
// checks the experiment file with them before anything is done.
std::vector<std::string> data_overrides(const WatchConfig& config, const std::string& run,
                                        const std::string& init_from);
// Values of `--set` in a list of words.
std::vector<std::string> set_values(const std::vector<std::string>& words);

}  // namespace hearth
