// What the loop of `hearth watch` remembers: WORKSPACE/state.json, replaced whole by each commit, and the
// journal beside it. A commit is one write of the state that carries its events along; they reach the journal
// after it, and a start after a kill in between appends them. So state and journal never disagree, and no
// event is lost or written twice. Not thread-safe; one writer per workspace (a run lock).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/file_system.h"
#include "launch/watch/lineage.h"

namespace hearth {

// The step that comes next. A step is repeated after a kill, so each one is idempotent up to its commit.
enum class WatchPhase { Base, Collect, Ingest, Train, Export, Evaluate, Promote, Prune };
std::string_view name(WatchPhase phase);

struct WaitingFile {
  std::string name;    // in the inbox
  std::string stored;  // DIGEST.ending in accepted/NNNN
  std::string digest;  // XXH3-128
  int64_t bytes = 0, documents = 0;
  int64_t accepted_s = 0;  // when the watcher took it (Clock::now_s)
  bool operator==(const WaitingFile&) const = default;
};

// An inbox file that was taken (or refused) and has to go. One that changed meanwhile is another file.
struct InboxRemoval {
  std::string name;
  int64_t size = 0, modified_ns = 0;
  bool operator==(const InboxRemoval&) const = default;
};

struct FileDigest {
  std::string name, digest;
  int64_t bytes = 0;
  bool operator==(const FileDigest&) const = default;
};

// Loss of a release, or of a candidate, on a dataset of a certain content.
struct Score {
  std::string model;  // "0003"
  std::string dataset, dataset_digest;
  double loss = 0;
  int64_t tokens = 0;
  bool operator==(const Score&) const = default;
};

struct WatchRun {
  std::string name;    // "0003": of its folders in data/, runs/, candidates/ and releases/
  std::string parent;  // the release that it starts from and is measured against
  std::vector<WaitingFile> files;
  std::vector<std::string> overrides;  // --set of the training, frozen when its data was
  std::string checkpoint, checkpoint_digest;
  std::vector<FileDigest> exported;
  std::vector<Score> scores;
  bool operator==(const WatchRun&) const = default;
};

struct WatchState {
  int64_t sequence = 0;  // of the newest event
  WatchPhase phase = WatchPhase::Base;
  int64_t next_run = 1;
  std::string serving;  // release that the link points to; "" before the first
  std::vector<WaitingFile> waiting;
  int64_t too_small_bytes = 0;  // waiting files of so many bytes were too few to make a run of
  std::vector<InboxRemoval> removals;
  std::optional<WatchRun> run;
  std::vector<Score> scores;         // of releases, on old held-out data
  std::vector<LineageEvent> events;  // of this commit
};
std::string state_to_json(const WatchState& state);
// Throws Error{Corrupt}.
WatchState state_from_json(std::string_view text, const std::string& path);

class WatchStore {
 public:
  struct Hooks {
    std::function<void(std::string_view)> at_point;  // kill points of tests
    std::function<void()> check_lock;                // throws when the workspace was taken over
  };
  // Reads WORKSPACE, or begins a new one; finishes a commit that a kill cut short.
  WatchStore(FileSystem& fs, Clock& clock, const std::string& workspace, Hooks hooks);

  const WatchState& state() const { return state_; }
  const LineageJournal& journal() const { return journal_; }
  // `next` becomes the state; `events` get numbers and the time.
  void commit(WatchState next, std::vector<LineageEvent> events = {});

 private:
  FileSystem& fs_;
  Clock& clock_;
  std::string path_;
  Hooks hooks_;
  LineageJournal journal_;
  WatchState state_;
};

}  // namespace hearth
