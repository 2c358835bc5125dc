#include "trainer/checkpoint/checkpoint_saver.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <thread>

#include "base/error.h"
#include "trainer/checkpoint/checkpoint_commit.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/checkpoint/retention.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kAlign = 64;       // a cache line; also what vector loads like
constexpr int kFailuresThatEnd = 2;  // in a row
constexpr std::string_view kWorking = "w", kDone = "d";

// Host memory that may outlive the saver while a worker that was given up still reads it.
class HostBuffer {
 public:
  HostBuffer(const HostAllocator& allocator, int64_t bytes) : allocator_(allocator), bytes_(bytes) {
    const auto size = static_cast<size_t>(bytes);
    data_ =
        allocator_.allocate ? allocator_.allocate(bytes) : ::operator new (size, std::align_val_t{kAlign});
    HEARTH_CHECK(data_ != nullptr, NoSpace, "no host memory for a snapshot of {} bytes", bytes);
  }
  ~HostBuffer() {
    if (allocator_.allocate)
      allocator_.release(data_);
    else
      ::operator delete (data_, std::align_val_t{kAlign});
  }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  HostAllocator allocator_;
  int64_t bytes_;
  void* data_ = nullptr;
};

// One piece of work on the worker thread. Shared with the thread, so that a stuck one can be left behind.
struct Job {
  std::mutex mutex;
  std::condition_variable changed;
  bool finished = false;
  RankPart part;
  std::optional<SaveFailure> failure;

  void run(const std::function<RankPart()>& work) {
    RankPart made;
    std::optional<SaveFailure> failed;
    try {
      made = work();
    } catch (...) {  // a thread entry point: whatever it is becomes this rank's vote
      failed = failure_of_current_exception();
    }
    const std::lock_guard lock(mutex);
    part = std::move(made);
    failure = std::move(failed);
    finished = true;
    changed.notify_all();
  }
  bool wait_for(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, limit, [this] { return finished; });
  }
  // "w", "d", or "f" + failure.
  std::string status() {
    const std::lock_guard lock(mutex);
    if (!finished) return std::string(kWorking);
    return failure ? "f" + to_text(*failure) : std::string(kDone);
  }
};

// The first failure among the ranks' answers, with the rank's number in the message.
std::optional<SaveFailure> first_failure(const std::vector<std::string>& answers) {
  for (size_t r = 0; r < answers.size(); ++r) {
    if (answers[r].empty() || answers[r][0] != 'f') continue;
    SaveFailure failure = save_failure_from_text(std::string_view(answers[r]).substr(1));
    if (answers.size() > 1) failure.message = fmt::format("rank {}: {}", r, failure.message);
    return failure;
  }
  return std::nullopt;
}

// Runs `work` on rank 0 (others contribute nothing) and tells every rank how it went.
std::optional<SaveFailure> on_rank_0(ControlPlane& control, std::string_view site,
                                     const std::function<void()>& work) {
  std::string answer(kDone);
  if (control.rank() == 0) {
    try {
      work();
    } catch (const std::exception&) {
      answer = "f" + to_text(failure_of_current_exception());
    }
  }
  return first_failure({control.broadcast(answer, site)});
}

// Runs `work` on every rank and votes.
std::optional<SaveFailure> on_every_rank(ControlPlane& control, std::string_view site,
                                         const std::function<void()>& work) {
  std::string answer(kDone);
  try {
    work();
  } catch (const std::exception&) {
    answer = "f" + to_text(failure_of_current_exception());
  }
  return first_failure(control.all_gather(answer, site));
}

int64_t total_bytes(const Manifest& manifest) {
  int64_t bytes = 0;
  for (const auto& file : manifest.files) bytes += file.bytes;
  return bytes;
}

std::vector<RankPart> gather_parts(ControlPlane& control, const RankPart& mine) {
  std::vector<RankPart> parts;
  for (const auto& text : control.all_gather(to_text(mine), "ckpt.parts"))
    parts.push_back(rank_part_from_text(text));
  return parts;
}

void remove_quietly(FileSystem& fs, Log& log, const std::string& path) {
  try {
    fs.remove_all(path);
  } catch (const Error& error) {
    log.warning("event=leftover path={} reason=\"{}\"", path, error.message());
  }
}

// Whoever made the run folder may not have made its name durable. Three levels: checkpoints/, the run, runs/.
void sync_parents(FileSystem& fs, Log& log, std::string path) {
  try {
    for (int level = 0; level < 3 && path.find('/') != std::string::npos; ++level) {
      path.resize(path.find_last_of('/'));
      fs.sync_directory(path.empty() ? "/" : path);
    }
  } catch (const Error& error) {  // a folder above ours that we may not read; it was there before us
    log.warning("event=parent_not_synced path={} reason=\"{}\"", path, error.message());
  }
}

}  // namespace

struct CheckpointSaver::Impl {
  enum class Phase { Idle, Filling, Writing, Checking };

  Impl(FileSystem& fs_in, ControlPlane& control_in, Log& log_in, CheckpointSaverOptions options_in)
      : fs(fs_in), control(control_in), log(log_in), options(std::move(options_in)) {}

  FileSystem& fs;
  ControlPlane& control;
  Log& log;
  CheckpointSaverOptions options;

  Phase phase = Phase::Idle;
  CheckpointIdentity identity;
  Snapshot snapshot;
  std::shared_ptr<HostBuffer> buffer;
  std::shared_ptr<Job> job;
  std::thread worker;  // of this rank's job
  std::thread pruner;  // rank 0, after the save is done
  std::string temporary, target;
  RankPart part;  // what this rank wrote
  Clock::time_point started;
  int64_t saves_begun = 0, last_begun = -1, last_committed = -1;
  std::string last_path;
  int failures_in_row = 0;
  std::string last_reason;
  std::set<std::string>
      verified;  // paths read back by this program; touched by the pruner only while it runs

  bool is_root() const { return control.rank() == 0; }
  void pass(std::string_view point) const {
    if (options.at_point) options.at_point(point);
  }

  // ---- begin
  // -----------------------------------------------------------------------------------------------------
  void lay_out(std::vector<TensorPiece> pieces) {
    snapshot.offsets_.clear();
    int64_t bytes = 0;
    for (const auto& piece : pieces) {
      snapshot.offsets_.push_back(bytes);
      bytes = (checked_add(bytes, piece.bytes()) + kAlign - 1) / kAlign * kAlign;
    }
    snapshot.pieces_ = std::move(pieces);
    if (buffer == nullptr || buffer->bytes() < bytes) {
      buffer.reset();  // before the new one: two would not fit where memory is tight
      buffer = std::make_shared<HostBuffer>(options.allocator, std::max(bytes, kAlign));
    }
    snapshot.base_ = buffer->data();
  }

  // ---- worker
  // ----------------------------------------------------------------------------------------------------
  void start(std::function<RankPart()> work) {
    join(worker);
    job = std::make_shared<Job>();
    worker = std::thread([mine = job, task = std::move(work)] { mine->run(task); });
  }
  static void join(std::thread& thread) {
    if (thread.joinable()) thread.join();
  }

  void start_writing(std::string state_json, std::vector<ExtraFile> extras) {
    // Everything by value: a worker that is given up on must not touch the saver.
    start([&files = fs, hook = options.at_point, check = options.finite_check, rank = control.rank(),
           dir = temporary, memory = buffer, pieces = snapshot.pieces_, offsets = snapshot.offsets_,
           state = std::move(state_json), extra = std::move(extras)] {
      if (hook) hook("async.copy");
      const PieceSource source{.direct = [&](size_t i) { return memory->data() + offsets[i]; }, .read = {}};
      RankPart made = write_rank_file(files, dir, rank, pieces, source, check, hook);
      if (rank == 0) write_extra_files(files, dir, state, extra, made);
      return made;
    });
  }

  // ---- poll
  // ------------------------------------------------------------------------------------------------------
  // One collective round. `give_up`: a worker that is still at it counts as failed.
  enum class Patience { Wait, GiveUp };
  void poll(Patience patience) {
    std::string mine = job->status();
    if (mine == kWorking && patience == Patience::GiveUp) {
      mine =
          "f" + to_text(SaveFailure{ErrorKind::Timeout, fmt::format("still writing {} after {} s", temporary,
                                                                    options.wait_limit.count())});
      worker.detach();  // it holds its own references; joining would hang with the file system
    }
    const auto answers = control.all_gather(mine, phase == Phase::Writing ? "ckpt.written" : "ckpt.checked");
    // While one rank still writes, removing the folder would race with it.
    if (std::find(answers.begin(), answers.end(), kWorking) != answers.end()) return;
    join(worker);
    const auto failure = first_failure(answers);
    if (phase == Phase::Writing)
      failure ? fail_save(*failure, temporary) : commit();
    else
      failure ? fail_save(*failure, target) : finish_save();
  }

  void commit() {
    part = std::move(job->part);
    pass("ckpt.voted");
    const auto parts = gather_parts(control, part);
    const auto failure = on_rank_0(control, "ckpt.commit", [&] {
      const Manifest manifest = merge_parts(identity, options.attempt, parts);
      commit_directory(fs,
                       {.temporary = temporary,
                        .target = target,
                        .aside = fmt::format("{}/aside.{}.{}.{}", options.folder,
                                             checkpoint_name(identity.step), options.attempt, saves_begun),
                        .check_lock = options.check_lock,
                        .at_point = options.at_point},
                       manifest);
      const std::chrono::duration<double> seconds = Clock::now() - started;
      log.info("event=checkpoint_committed step={} path={} bytes={} seconds={:.3f}", identity.step, target,
               total_bytes(manifest), seconds.count());
    });
    if (failure) return fail_save(*failure, temporary);
    phase = Phase::Checking;
    start([&files = fs, dir = target, mine = part] {
      verify_part(files, dir, mine);
      return RankPart{};
    });
  }

  void finish_save() {
    phase = Phase::Idle;
    last_committed = identity.step;
    last_path = target;
    failures_in_row = 0;
    if (!is_root()) return;
    join(pruner);
    verified.insert(target);
    pruner = std::thread([this] {
      try {
        write_latest_hint(fs, options.folder, target);
        prune_checkpoints(fs, log, {options.folder, options.keep_latest_k, options.attempt, options.at_point},
                          verified);
      } catch (const std::exception& error) {  // a thread entry point; the checkpoint itself is whole
        log.warning("event=prune_failed folder={} reason=\"{}\"", options.folder, error.what());
      }
    });
  }

  // The save is void: its folder goes, the old checkpoints stay.
  void fail_save(const SaveFailure& failure, const std::string& folder) {
    phase = Phase::Idle;
    last_reason = failure.message;
    if (is_root()) {
      log.error("event=checkpoint_failed step={} kind={} reason=\"{}\" kept={}", identity.step,
                name(failure.kind), failure.message, last_path.empty() ? "older" : last_path);
      if (folder == target)
        retire_checkpoint(fs, log, options.folder, target, options.attempt);
      else
        remove_quietly(fs, log, folder);
    }
    control.barrier("ckpt.failed");  // nobody starts the next save in a folder that is being removed
    ++failures_in_row;
    if (!failure.retryable())
      throw Error(failure.kind,
                  fmt::format("checkpoint of step {} was not saved: {}", identity.step, failure.message));
    if (failures_in_row < kFailuresThatEnd) return;
    const ErrorKind kind = failure.kind == ErrorKind::NoSpace ? ErrorKind::NoSpace : ErrorKind::Io;
    throw Error(
        kind,
        fmt::format("{} checkpoints in a row failed, the last at step {}: {}; older checkpoints are kept",
                    failures_in_row, identity.step, failure.message));
  }
};

CheckpointSaver::CheckpointSaver(FileSystem& fs, ControlPlane& control, Log& log,
                                 CheckpointSaverOptions options)
    : impl_(std::make_unique<Impl>(fs, control, log, std::move(options))) {
  const auto failure = on_rank_0(control, "ckpt.start", [&] {
    create_directories_durably(fs, impl_->options.folder);
    sync_parents(fs, log, impl_->options.folder);
    remove_leftovers(fs, log, impl_->options.folder);
  });
  if (failure) throw Error(failure->kind, failure->message);
}

CheckpointSaver::~CheckpointSaver() {
  Impl::join(impl_->worker);
  Impl::join(impl_->pruner);
}

void CheckpointSaver::reserve(const std::vector<TensorPiece>& pieces) {
  HEARTH_REQUIRE(impl_->phase != Impl::Phase::Filling, "reserve: a snapshot is being filled");
  const auto failure = on_every_rank(impl_->control, "ckpt.reserve", [&] { impl_->lay_out(pieces); });
  if (failure) throw Error(failure->kind, failure->message);
}

Snapshot* CheckpointSaver::begin(const CheckpointIdentity& identity, std::vector<TensorPiece> pieces) {
  Impl& s = *impl_;
  HEARTH_REQUIRE(s.phase != Impl::Phase::Filling, "begin: the snapshot of step {} was never committed",
                 s.identity.step);
  wait();
  Impl::join(s.pruner);  // on rank 0: it lists the folder that is about to change
  HEARTH_REQUIRE(identity.step != s.last_committed, "step {} is saved already", identity.step);
  s.identity = identity;
  s.last_begun = identity.step;
  s.started = Clock::now();
  s.temporary =
      fmt::format("{}/tmp.{:08}.{}.{}", s.options.folder, identity.step, s.options.attempt, ++s.saves_begun);
  s.target = s.options.folder + "/" + checkpoint_name(identity.step);
  s.pass("ckpt.begin");
  const int64_t bytes = s.control.all_reduce_sum(planned_bytes(pieces), "ckpt.bytes");
  const auto failure = on_every_rank(s.control, "ckpt.begin", [&] {
    require_space(s.fs, s.options.folder, bytes);
    s.lay_out(std::move(pieces));
    if (s.is_root()) s.fs.create_directories(s.temporary);
  });
  if (failure) {
    s.fail_save(*failure, s.temporary);
    return nullptr;
  }
  s.phase = Impl::Phase::Filling;
  return &s.snapshot;
}

void CheckpointSaver::commit_async(std::string state_json, std::vector<ExtraFile> extra_files) {
  HEARTH_REQUIRE(impl_->phase == Impl::Phase::Filling, "commit_async without begin");
  impl_->start_writing(std::move(state_json), std::move(extra_files));
  impl_->phase = Impl::Phase::Writing;
}

void CheckpointSaver::poll() {
  if (in_flight()) impl_->poll(Impl::Patience::Wait);
}

void CheckpointSaver::wait() {
  const auto deadline = Clock::now() + impl_->options.wait_limit;
  while (in_flight()) {
    // Short rounds keep the ranks in step, so that no collective waits for a slow disk.
    impl_->job->wait_for(std::chrono::milliseconds(100));
    impl_->poll(Clock::now() < deadline ? Impl::Patience::Wait : Impl::Patience::GiveUp);
  }
}

void CheckpointSaver::finish() {
  wait();
  Impl::join(impl_->pruner);
  HEARTH_CHECK(impl_->last_begun == impl_->last_committed, Io,
               "the last save (step {}) is not committed: {}; the newest good checkpoint is {}",
               impl_->last_begun, impl_->last_reason,
               impl_->last_path.empty() ? "that of an earlier attempt" : impl_->last_path);
}

bool CheckpointSaver::in_flight() const {
  return impl_->phase == Impl::Phase::Writing || impl_->phase == Impl::Phase::Checking;
}
int64_t CheckpointSaver::last_committed_step() const {
  return impl_->last_committed;
}
std::string CheckpointSaver::last_committed_path() const {
  return impl_->last_path;
}

void save_checkpoint(FileSystem& fs, ControlPlane& control, Log& log, const std::string& directory,
                     const CheckpointIdentity& identity, const std::vector<TensorPiece>& pieces,
                     const PieceReader& read, const std::string& state_json,
                     const std::vector<ExtraFile>& extra_files) {
  const size_t slash = directory.find_last_of('/');
  const std::string target = slash == std::string::npos ? "./" + directory : directory;
  const std::string parent = target.substr(0, target.find_last_of('/'));
  const std::string temporary = target + ".tmp";
  const auto require = [&](const std::optional<SaveFailure>& failure) {
    if (!failure) return;
    if (control.rank() == 0) remove_quietly(fs, log, temporary);
    throw Error(failure->kind, failure->message);
  };
  const auto clean_start = on_rank_0(control, "ckpt.start", [&] {
    HEARTH_CHECK(!fs.exists(target), Usage, "{} exists already; give another --output, or remove it first",
                 target);
    create_directories_durably(fs, parent);
    fs.remove_all(temporary);  // of an earlier call that was killed
    fs.create_directories(temporary);
  });
  if (clean_start) throw Error(clean_start->kind, clean_start->message);
  const int64_t bytes = control.all_reduce_sum(planned_bytes(pieces), "ckpt.bytes");
  RankPart part;
  require(on_every_rank(control, "ckpt.write", [&] {
    require_space(fs, temporary, bytes);
    part = write_rank_file(fs, temporary, control.rank(), pieces, {.direct = {}, .read = read},
                           FiniteCheck::Yes, {});
    if (control.rank() == 0) write_extra_files(fs, temporary, state_json, extra_files, part);
  }));
  const auto parts = gather_parts(control, part);
  require(on_rank_0(control, "ckpt.commit", [&] {
    commit_directory(
        fs, {.temporary = temporary, .target = target, .aside = {}, .check_lock = {}, .at_point = {}},
        merge_parts(identity, 1, parts));
  }));
  const auto unreadable = on_every_rank(control, "ckpt.check", [&] { verify_part(fs, target, part); });
  if (!unreadable) return;
  if (control.rank() == 0) remove_quietly(fs, log, target);
  throw Error(unreadable->kind, unreadable->message);
}

}  // namespace hearth
