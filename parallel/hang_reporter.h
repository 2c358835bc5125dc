// Asks every rank where it is when the job does not go on, has the page of hang_report.h printed once, and
// ends this process, all from a thread of its own: the main thread may sit in an MPI or device call, and MPI
// is its alone. The ranks meet in a folder that all of them see.
//
// alarm   Somebody's deadline passes (FlightRecorder::alarm), or the launcher asks this process to end while
//         another rank of this host is gone without a word: mpirun sends SIGTERM to the others when a rank
//         dies, and SIGKILL one second later. That rank marks FOLDER/alarm, which all ranks read twice a
//         second.
// answer  Every rank writes its state to FOLDER/rank_0003. One that sleeps outside of calls answers too; one
//         that is dead or stopped does not.
// page    When all that can have answered, or after 2 s (0.4 s before a SIGKILL), the lowest rank that did
// prints
//         the page.
// end     Every rank ends within a second after the page, in whatever call it sits: code 7, or 8 where a rank
// died.
//
// The files are there from the start, since some network file systems are slow to notice new names. Sources:
// the flight recorder of PyTorch's ProcessGroupNCCL (state on request, in files). Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"
#include "parallel/control_plane.h"
#include "parallel/flight_recorder.h"
#include "parallel/hang_report.h"

namespace hearth {

struct HangOptions {
  std::string folder;               // of this job alone; emptied at the start, removed where all goes well
  std::vector<std::string> places;  // of each rank, for the page: "pp 0 dp 1"; may be empty
  std::function<void(std::string_view page)> print;
  std::function<bool()>
      told_to_end;  // whether the launcher has asked this process to end (SIGTERM); may be empty
};

class HangReporter {
 public:
  // Collective. Throws Error{Io} on every rank where one of them cannot use the folder.
  HangReporter(ControlPlane& control, FlightRecorder& recorder, HangOptions options);
  ~HangReporter();  // ends the thread
  HangReporter(const HangReporter&) = delete;
  HangReporter& operator=(const HangReporter&) = delete;

  // Before this rank ends alone because of `error`; whether it shall report the error. A deadline or a lost
  // peer: raises the alarm and returns when the page is out; the rank that printed it reports. Any other
  // error is announced, so that this rank's end is no riddle to the others.
  bool explain(const Error& error);

 private:
  struct Round;
  void open_folder(ControlPlane& control);
  void run();
  bool alarm_is_up();
  bool died_silently();
  void hold_round(bool in_a_hurry);
  void meet(double answer_s);
  void gather(Round& round);
  void print_page(const Round& round);
  std::string process(int rank) const;
  std::optional<RankState> answer(int rank);
  void write(const std::string& name, std::string_view text);
  bool nap(double seconds);  // false when the thread shall end

  const int rank_;
  FlightRecorder& recorder_;
  const HangOptions options_;
  std::unique_ptr<FileSystem> fs_ = make_posix_file_system();
  std::vector<RankIdentity> ranks_;
  std::vector<std::string> pid_spaces_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, page_done_ = false, printed_ = false;
  std::thread thread_;  // last: starts when all else exists
};

}  // namespace hearth
