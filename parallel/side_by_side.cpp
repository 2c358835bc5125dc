#include "parallel/side_by_side.h"

#include <utility>

namespace hearth {
namespace {

class TurnWork final : public Work {
 public:
  TurnWork(SideBySide& sides, WorkPtr work) : sides_(sides), work_(std::move(work)) {}
  void wait() override {
    if (!std::exchange(waited_, true)) sides_.give_turn();
    work_->wait();
  }
  bool poll() override { return work_->poll(); }

 private:
  SideBySide& sides_;
  WorkPtr work_;
  bool waited_ = false;
};

class TurnComm final : public Comm {
 public:
  TurnComm(SideBySide& sides, Comm& comm) : sides_(sides), comm_(comm) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  std::string_view backend() const override { return comm_.backend(); }
  const std::string& group() const override { return comm_.group(); }
  void set_compute_stream(StreamHandle stream) override { comm_.set_compute_stream(stream); }
  WorkPtr all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view site) override {
    return by_turns(comm_.all_reduce(data, count, dtype, op, site));
  }
  WorkPtr reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                         std::string_view site) override {
    return by_turns(comm_.reduce_scatter(send, recv, count, dtype, site));
  }
  WorkPtr all_gather(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override {
    return by_turns(comm_.all_gather(send, recv, count, dtype, site));
  }
  WorkPtr broadcast(void* data, int64_t count, DType dtype, int root, std::string_view site) override {
    return by_turns(comm_.broadcast(data, count, dtype, root, site));
  }
  WorkPtr all_to_all(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override {
    return by_turns(comm_.all_to_all(send, recv, count, dtype, site));
  }
  WorkPtr send(const void* data, int64_t count, DType dtype, int peer, std::string_view site) override {
    return by_turns(comm_.send(data, count, dtype, peer, site));
  }
  WorkPtr recv(void* data, int64_t count, DType dtype, int peer, std::string_view site) override {
    return by_turns(comm_.recv(data, count, dtype, peer, site));
  }
  void barrier(std::string_view site) override { comm_.barrier(site); }

 private:
  WorkPtr by_turns(WorkPtr work) { return std::make_unique<TurnWork>(sides_, std::move(work)); }
  SideBySide& sides_;
  Comm& comm_;
};

}  // namespace

SideBySide::SideBySide(std::function<void()> enter)
    : enter_(std::move(enter)), helper_([this] { serve(); }) {}

SideBySide::~SideBySide() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  helper_.join();
}

// The helper thread.
void SideBySide::serve() {
  bool entered = false;
  for (;;) {
    const std::function<void()>* task = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || task_ != nullptr; });
      if (stop_) return;
      task = std::exchange(task_, nullptr);
    }
    std::exception_ptr error;
    try {
      if (!entered && enter_) enter_();
      entered = true;
      (*task)();
    } catch (...) {
      error = std::current_exception();
    }
    finish(Side::First, error);
  }
}

void SideBySide::finish(Side side, std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (error && !error_) error_ = std::move(error);  // the other's Abandoned comes later
    done(side) = true;
    turn_ = other(side);
  }
  changed_.notify_all();
}

void SideBySide::run(const std::function<void()>& first, const std::function<void()>& second) {
  std::unique_lock lock(mutex_);
  first_done_ = second_done_ = false;
  error_ = nullptr;
  turn_ = Side::First;
  task_ = &first;
  changed_.notify_all();
  changed_.wait(lock, [this] { return turn_ == Side::Second; });
  std::exception_ptr error;
  if (!error_) {
    lock.unlock();
    try {
      second();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
  }
  lock.unlock();
  finish(Side::Second, error);
  lock.lock();
  changed_.wait(lock, [this] { return first_done_; });
  turn_ = Side::None;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void SideBySide::give_turn() {
  std::unique_lock lock(mutex_);
  if (turn_ == Side::None) return;
  const Side me = turn_;
  if (!done(other(me))) {
    turn_ = other(me);
    changed_.notify_all();
    changed_.wait(lock, [&] { return turn_ == me; });
  }
  if (error_) throw Abandoned{};
}

std::unique_ptr<Comm> SideBySide::waiting_by_turns(Comm& comm) {
  return std::make_unique<TurnComm>(*this, comm);
}

}  // namespace hearth
