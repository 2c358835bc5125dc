// The steps of the commit protocol that one rank does alone; checkpoint_saver.cpp strings them together with
// votes. Every function throws hearth::Error; none talks to other ranks, so the save worker may call them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/checkpoint/manifest.h"

namespace hearth {

using PointHook = std::function<void(std::string_view point)>;  // may be empty

// What one rank wrote: its files, and its slices with file numbers that count within `files`.
struct RankPart {
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
  bool operator==(const RankPart&) const = default;
};
std::string to_text(const RankPart& part);  // for the exchange between ranks of one program
RankPart rank_part_from_text(std::string_view text);

// A failure that crosses ranks as text.
struct SaveFailure {
  ErrorKind kind = ErrorKind::Io;
  std::string message;
  // Trouble of the disk is worth another try; the rest (numbers, a foreign lock, a bug) is not.
  bool retryable() const;
};
std::string to_text(const SaveFailure& failure);
SaveFailure save_failure_from_text(std::string_view text);
SaveFailure failure_of_current_exception();  // call in a catch block

// Where a piece's bytes come from: `direct(i)` gives memory, or `read` fills a buffer.
struct PieceSource {
  std::function<const void*(size_t piece)> direct;
  PieceReader read;
};

std::string rank_file_name(int rank);  // "rank_003.safetensors"

// Step 2: writes, hashes, fsyncs and closes `directory`/rank_NNN.safetensors. No pieces, no file.
// Points: ckpt.shard_written, ckpt.shard_synced.
RankPart write_rank_file(FileSystem& fs, const std::string& directory, int rank,
                         const std::vector<TensorPiece>& pieces, const PieceSource& source,
                         FiniteCheck finite_check, const PointHook& at_point);
// Step 2 on rank 0: state.json and the files beside it, each durable; appended to part.files.
void write_extra_files(FileSystem& fs, const std::string& directory, const std::string& state_json,
                       const std::vector<ExtraFile>& extra_files, RankPart& part);

// Step 4: one manifest from all parts. Throws Error{Internal} unless they cover every tensor exactly once.
Manifest merge_parts(const CheckpointIdentity& identity, int64_t attempt, const std::vector<RankPart>& parts);

// Steps 4 and 5 on rank 0: manifest, fsync, folder fsync, lock check, rename, parent fsync. When it throws,
// `target` does not exist (what may have been renamed is moved back). Points: ckpt.manifest, ckpt.renamed,
// ckpt.parent_synced. An older folder at `target` is moved to `aside` first.
struct CommitPlan {
  std::string temporary, target, aside;
  std::function<void()> check_lock;
  PointHook at_point;
};
void commit_directory(FileSystem& fs, const CommitPlan& plan, const Manifest& manifest);

// Step 6: re-reads what this rank wrote.
void verify_part(FileSystem& fs, const std::string& directory, const RankPart& part);

// Makes missing folders and their names durable: a committed checkpoint in a folder that a crash forgets is
// lost.
void create_directories_durably(FileSystem& fs, const std::string& path);

// Bytes that a save of these pieces puts on disk, header included (an upper bound).
int64_t planned_bytes(const std::vector<TensorPiece>& pieces);

// Throws Error{NoSpace} unless `bytes` x 1.1 are free where `directory` lies.
void require_space(FileSystem& fs, const std::string& directory, int64_t bytes);

}  // namespace hearth
