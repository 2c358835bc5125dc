// Two computations of one rank that take turns: each runs until it would wait for other ranks, then the other
// goes on, so that the transfers of one pass while the other computes. This is the overlapped forward and
// backward of DualPipe (DeepSeek-AI 2024), at every point where a computation waits for a Comm of
// waiting_by_turns(). One runs at a time and turns depend on the calls alone, so results are the same in
// every run, and all ranks of a group make their calls in the same order. Over NCCL both use the caller's
// compute stream: a wait is put into it only when the other computation has queued its work there, and its
// transfer runs on the communicator's own stream meanwhile.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "parallel/comm.h"

namespace hearth {

class SideBySide {
 public:
  // `enter` is called once on the helper thread before its first task: what a thread needs to compute like
  // the caller's.
  explicit SideBySide(std::function<void()> enter = {});
  ~SideBySide();
  SideBySide(const SideBySide&) = delete;
  SideBySide& operator=(const SideBySide&) = delete;

  // Runs both to their end, beginning with `first`, on the helper thread; `second` runs on the caller's.
  // Where one throws, the other ends at its next turn, and the error is thrown here.
  void run(const std::function<void()>& first, const std::function<void()>& second);
  // To be called by the one that runs, on whatever thread of its own. Returns at its next turn; at once where
  // the other is done, or outside run().
  void give_turn();

  // `comm` with calls whose wait() gives the turn first. Borrows both; Works must not outlive them.
  std::unique_ptr<Comm> waiting_by_turns(Comm& comm);

 private:
  enum class Side { First, Second, None };
  // Thrown out of give_turn() where the other has failed. A std::exception, as autograd's threads catch no
  // others.
  struct Abandoned : std::exception {
    const char* what() const noexcept override { return "the computation beside this one has failed"; }
  };
  void serve();
  void finish(Side side, std::exception_ptr error);
  static Side other(Side side) { return side == Side::First ? Side::Second : Side::First; }
  bool& done(Side side) { return side == Side::First ? first_done_ : second_done_; }

  const std::function<void()> enter_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Side turn_ = Side::None;  // None: outside run()
  const std::function<void()>* task_ = nullptr;
  bool first_done_ = true, second_done_ = true, stop_ = false;
  std::exception_ptr error_;
  std::thread helper_;  // last: starts when all else exists
};

}  // namespace hearth
