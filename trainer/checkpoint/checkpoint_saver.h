// Writes checkpoints by the commit protocol of reliability.md: temporary folder, rank files, fsync, vote,
// manifest, fsync, rename, parent fsync, read-back, `latest`, pruning. All ranks hold one and call it alike.
//
// The loop's view (asynchronous):
//   if (Snapshot* snapshot = saver.begin(identity, pieces)) {       // collective
//     for (size_t i = 0; i < pieces.size(); ++i) copy parameter i to snapshot->data(i);
//     saver.commit_async(state_json, extra_files);                  // returns at once; a thread writes
//   }
//   at every step boundary: saver.poll();                           // collective only while a save is in
//   flight before the end: saver.finish();                                 // waits; throws unless the last
//   save is committed
// Synchronous: begin, copy, commit_async, wait.
//
// Failures: a failed save keeps the old checkpoints, is logged on rank 0 and counted; the second in a row
// throws Error{NoSpace} or Error{Io} (code 9) on every rank. A non-finite value throws Error{Numeric} on
// every rank and the save is dropped. A foreign run lock throws Error{InUse} on every rank. Threading: all
// calls from the main thread; the worker does local writing only, so MPI stays funneled.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "base/log.h"
#include "parallel/control_plane.h"
#include "trainer/checkpoint/manifest.h"

namespace hearth {

// What this rank contributes to one global tensor: row-major elements [begin, end) of `box`.
// Over all ranks, every element of every tensor must come exactly once (replicas are written by one rank
// only).
struct TensorPiece {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // global
  Box box;
  int64_t begin = 0, end = 0;
  int64_t elements() const { return end - begin; }
  int64_t bytes() const { return elements() * size_bytes(dtype); }
  static TensorPiece whole(std::string name, DType dtype, std::vector<int64_t> shape);
};

// Host memory for snapshots; the trainer passes pinned memory. Empty functions: plain aligned memory.
struct HostAllocator {
  std::function<void*(int64_t bytes)> allocate;
  std::function<void(void*)> release;
};

// Content that rank 0 writes beside the tensors: "tokenizer/tokenizer.json", "config.json", ...
struct ExtraFile {
  std::string name;  // see is_safe_file_name
  std::string content;
};

// Host memory for this rank's pieces of one save. Owned by the saver, reused by the next save.
class Snapshot {
 public:
  const std::vector<TensorPiece>& pieces() const { return pieces_; }
  // pieces()[i].bytes() bytes, 64-byte aligned. To be filled before commit_async.
  void* data(size_t i) const { return base_ + offsets_[i]; }

 private:
  friend class CheckpointSaver;
  std::vector<TensorPiece> pieces_;
  std::vector<int64_t> offsets_;
  std::byte* base_ = nullptr;
};

enum class FiniteCheck { Yes, No };  // scan floating pieces in the worker; non-finite values refuse the save

struct CheckpointSaverOptions {
  std::string folder;         // <run>/checkpoints; made if missing
  int64_t keep_latest_k = 3;  // 0 = all; the last two verified ones are kept whatever it says
  int64_t attempt = 1;        // of the run lock; part of temporary names
  HostAllocator allocator;
  std::function<void()>
      check_lock;  // rank 0, just before the rename; throws Error{InUse} when the lock is foreign
  std::function<void(std::string_view point)>
      at_point;  // kill points of tests: ckpt.begin, ckpt.shard_written, ...
  FiniteCheck finite_check = FiniteCheck::Yes;
  std::chrono::seconds wait_limit{1800};  // of wait() and finish(): then Error{Timeout}
};

class CheckpointSaver {
 public:
  // Collective. Rank 0 makes the folder and removes leftovers (tmp.*, dead.*) of earlier attempts; the run
  // lock must be held. References must outlive the saver.
  CheckpointSaver(FileSystem& fs, ControlPlane& control, Log& log, CheckpointSaverOptions options);
  ~CheckpointSaver();  // waits for the local thread only; what is not committed stays a temporary folder

  // Collective. Makes the memory for a snapshot of such pieces now, before training: to pin it takes about
  // 0.4 s a GiB, which else the step of the first save waits for. Throws on every rank where one has too
  // little.
  void reserve(const std::vector<TensorPiece>& pieces);
  // Collective. Finishes an earlier save first. Votes on space (bytes x 1.1); null on every rank when the
  // save failed here. Throws Error{Usage} where a step is saved twice.
  Snapshot* begin(const CheckpointIdentity& identity, std::vector<TensorPiece> pieces);
  // Hands the filled snapshot to the worker. state_json and extra_files count on rank 0 only.
  void commit_async(std::string state_json, std::vector<ExtraFile> extra_files = {});
  // Collective while in_flight(), else nothing: advances votes and the commit. Call it at each step boundary.
  void poll();
  // Collective: polls until nothing is in flight.
  void wait();
  // wait(), and throws Error{Io} unless the last save begun is committed.
  void finish();

  bool in_flight() const;               // the same on all ranks
  int64_t last_committed_step() const;  // by this saver; -1: none
  std::string last_committed_path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Fills `out` with the row-major elements [first, first + count) of the piece (that is box elements
// [piece.begin + first, ...)), in the piece's dtype.
using PieceReader = std::function<void(const TensorPiece& piece, int64_t first, int64_t count, void* out)>;

// One synchronous save without a snapshot buffer, for models larger than a rank's memory (`hearth import`):
// pieces are read through `read` a few MiB at a time. Collective; the same protocol and format. `directory`
// must not exist; it is committed by rename inside its parent, which is made if missing. Any failure throws
// on every rank and leaves nothing.
void save_checkpoint(FileSystem& fs, ControlPlane& control, Log& log, const std::string& directory,
                     const CheckpointIdentity& identity, const std::vector<TensorPiece>& pieces,
                     const PieceReader& read, const std::string& state_json,
                     const std::vector<ExtraFile>& extra_files = {});

}  // namespace hearth
