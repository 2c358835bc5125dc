// Asks every rank where it is when the job does not go on, has the page of hang_report.h printed once, and
// ends this process, all from a thread of its own: the main thread may sit in an MPI or device call, and MPI
// belongs to the threads that compute. The ranks meet in a folder that all of them see.
//
// alarm   A rank whose deadline passes (FlightRecorder::alarm) raises it: the kind of its error goes into
//         FOLDER/alarm, at which all ranks look now and then. So does a rank that the launcher asks to end
//         while another rank of its host is gone without a word: mpirun sends SIGTERM to the others when a
//         rank dies, and SIGKILL one second later.
// answer  Every rank writes its state to FOLDER/rank_0003. One that sleeps outside of calls answers too; one
//         that is dead or stopped does not.
// page    The lowest rank that raised the alarm and is not known to be gone prints the page when all have
//         answered that can, or their time is up, and puts it into FOLDER/page. Where that does not happen in
//         time, the first rank to claim the page prints it. The name is created exclusively, so there is one.
// end     Every rank ends within a second after the page, in whatever call it sits, with the code of the
//         alarm: 7, or 8 where a rank died.
//
// Times in a job of N ranks (HangTimes, kTickS to kLingerS in the source). A rank looks at the alarm every
// L = N/32 s, at least 0.5 and at most 2 s: 32 looks a second on the file server up to 64 ranks, N/2 beyond.
// Answers have A = max(2, L + 1) s, so that the last one to look has a second; they are read one after the
// other, by the rank that prints; the others read as far as that one's. The page has 0.6 s more, then another
// rank has 0.3 s to print it; the others see it L/16 s later, and 0.8 s are for the main thread to report and
// end by itself. With the tick of 0.05 s all ranks are gone after 0.05 + A + 0.6 + 0.3 + L/16 + 0.8 <= 4.9 s,
// in the usual case within L + 1 s. Only where all that raised the alarm end before they print, the others,
// who cannot know when it was raised, count from their own look, up to L later. From the launcher's SIGTERM
// on, in the second that it gives, a rank looks at every tick, and answers and page have 0.6 s together.
//
// What this cannot see: the death of a rank that was alone on its host. No process there is left to look, so
// its peers learn of it from the launcher, which ends the job without a page, or from their deadline, and
// then the page says that the rank does not answer.
//
// The files are there from the start, since some network file systems are slow to notice new names. Sources:
// the flight recorder of PyTorch's ProcessGroupNCCL (state on request, in files). Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
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
  // Whether the launcher has asked this process to end (SIGTERM); may be empty.
  std::function<bool()> told_to_end;
};

// Of a job; see above.
struct HangTimes {
  explicit HangTimes(int ranks);
  double look_s;    // between two looks of a rank at the alarm
  double answer_s;  // for the answers, from the alarm on
  double poll_s;    // between two looks for the page
  double end_s;     // from a deadline that passes to the end of all ranks
};

class HangReporter {
 public:
  // Collective. Throws Error{Io} on every rank where one of them cannot use the folder.
  HangReporter(ControlPlane& control, FlightRecorder& recorder, HangOptions options);
  ~HangReporter();  // ends the thread
  HangReporter(const HangReporter&) = delete;
  HangReporter& operator=(const HangReporter&) = delete;

  // Before this rank ends alone because of `error`; whether the caller shall report the error. A deadline or
  // a lost peer: raises the alarm and returns when the page is out; the rank that printed it reports. Any
  // other error is announced, so that this rank's end is no riddle to the others. One caller per process is
  // told to report; the others, of which each may end the process, come back when it had time for it.
  bool explain(const Error& error);

  // Before this rank leaves together with all others: that one of them has ended is no riddle from here on.
  // An alarm of a rank that still works is heard, as MPI_Finalize waits for it.
  void expect_end() { end_expected_ = true; }

 private:
  using Clock = FlightRecorder::Clock;
  struct Round;
  void open_folder(ControlPlane& control);
  void run();
  bool told();
  bool in_a_hurry() const;
  std::string text_of(const std::string& name);
  std::optional<ErrorKind> alarm_in_folder();
  std::optional<int> silent_death();
  void hold_round(ErrorKind kind, bool near_death);
  bool meet(Round& round);
  void shorten(Round& round);
  bool wait_for_turn(Round& round, bool raised);
  enum class Pass { Complete, Incomplete, Led };
  Pass read_answers(Round& round, Clock::time_point by, int below);
  bool will_print(int rank, const std::optional<RankState>& state) const;
  bool page_is_out();
  bool wait_for_page(Clock::time_point until);
  bool claim_page();
  void print_page(const Round& round);
  std::string process(int rank) const;
  std::optional<RankState> answer(int rank);
  void write_answer(RankState& state, std::string_view own_error = "");
  void write(const std::string& name, std::string_view text);
  bool nap(double seconds);  // false when the thread shall end

  const int rank_;
  FlightRecorder& recorder_;
  const HangOptions options_;
  const HangTimes times_;
  std::unique_ptr<FileSystem> fs_ = make_posix_file_system();
  std::vector<RankIdentity> ranks_;
  std::vector<std::string> pid_spaces_;
  std::optional<Clock::time_point> told_at_;  // of the thread
  bool deaths_explained_ = false;             // of the thread: a rank has announced an error
  std::atomic<bool> end_expected_ = false;

  std::mutex answer_mutex_;  // of this rank's answer and
  std::string own_error_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false, page_done_ = false, printed_ = false, reporter_found_ = false;
  std::thread thread_;  // last: starts when all else exists
};

}  // namespace hearth
