// A FileSystem for tests: fails the n-th call of a kind with an errno, cuts a write short, and records every
// operation so that tests can rebuild the states that a crash would leave (the idea of ALICE: Pillai et al.,
// OSDI 2014). Decorates another FileSystem; thread-safe where that one is.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

enum class FileOp {
  Create,
  Write,
  Sync,
  Close,
  Open,
  Read,
  Rename,
  Symlink,
  Remove,
  CreateDirectory,
  SyncDirectory,
  List,
  FreeBytes
};
std::string_view name(FileOp op);

struct FileFault {
  FileOp op = FileOp::Write;
  int64_t nth = 1;          // counts calls of this kind from 1; every later call fails too if `lasting`
  int error = 0;            // ENOSPC, EDQUOT, EIO, EINTR, EROFS, ESTALE, ...
  int64_t keep_bytes = -1;  // Write: >= 0 is a short write: so many bytes reach the file, then EIO
  bool lasting = false;
};

// One successful operation, in order. Directories made on the way are separate records.
struct FileRecord {
  FileOp op = FileOp::Write;
  std::string path;
  std::string to;    // Rename; Symlink: what it points to
  std::string data;  // Write
};

class FaultFileSystem final : public FileSystem {
 public:
  enum class Recording { Off, On };
  explicit FaultFileSystem(FileSystem& real, Recording recording = Recording::Off)
      : real_(real), recording_(recording) {}

  void set_fault(const FileFault& fault);
  void clear_faults();
  bool fired() const;              // did any fault strike since it was set
  int64_t calls(FileOp op) const;  // so far
  std::vector<FileRecord> records() const;
  std::vector<std::string> failed_syncs() const;  // paths whose fsync failed, in order
  std::vector<std::string> syncs() const;         // every fsync tried on a file, in order

  std::unique_ptr<WritableFile> create(const std::string& path, CreateMode mode) override;
  std::unique_ptr<ReadableFile> open(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& path) override;
  void remove_all(const std::string& path) override;
  void create_directories(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  bool exists(const std::string& path) override { return real_.exists(path); }
  bool is_directory(const std::string& path) override { return real_.is_directory(path); }
  bool is_symlink(const std::string& path) override { return real_.is_symlink(path); }
  FileStamp stamp(const std::string& path) override { return real_.stamp(path); }
  void create_symlink(const std::string& target, const std::string& path) override;
  std::string read_symlink(const std::string& path) override { return real_.read_symlink(path); }
  std::vector<std::string> list(const std::string& directory) override;
  int64_t free_bytes(const std::string& path) override;

 private:
  friend class FaultWritableFile;
  friend class FaultReadableFile;
  // Counts the call; throws if a fault is due. Returns for a torn write the bytes to keep, -1 otherwise.
  int64_t step(FileOp op, const std::string& path);
  [[noreturn]] void fail_with(FileOp op, const std::string& path, int error);
  void record(FileRecord entry);
  void note_sync(const std::string& path);
  void note_failed_sync(const std::string& path);

  FileSystem& real_;
  Recording recording_;
  mutable std::mutex mutex_;
  std::vector<FileFault> faults_;
  bool fired_ = false;
  std::map<FileOp, int64_t> calls_;
  std::vector<FileRecord> records_;
  std::vector<std::string> syncs_, failed_syncs_;
};

// What became of an operation that was not yet durable.
enum class Survives { No, Torn, Yes };  // Torn: the first half of a write; the same as No for names

// Rebuilds under `root` (which stands for the prefix `recorded_root` of every path, and must be empty) one
// state that a crash after the first `done` records may leave. Names are durable after the sync of their
// folder, bytes after the sync of their file; anything else may have reached the disk in any order, which
// `fate(i)` decides per record.
void replay_crash_state(FileSystem& fs, const std::vector<FileRecord>& records, size_t done,
                        const std::string& recorded_root, const std::string& root,
                        const std::function<Survives(size_t record)>& fate);

}  // namespace hearth
