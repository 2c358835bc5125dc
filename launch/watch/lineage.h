// The journal of `hearth watch`, WORKSPACE/lineage.jsonl: one JSON object a line, numbered from 1 without a
// gap, never rewritten. It answers which source files are in a release, and which releases hold a file.
// Events and their fields: launch/watch/README.md. Not thread-safe; one writer (the watcher holds a run
// lock).
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

using LineageEvent = nlohmann::ordered_json;  // "seq", "time", "event", and what the event says

std::string lineage_line(const LineageEvent& event);  // without the newline

class LineageJournal {
 public:
  // Reads what is there. A last line that a kill cut short is removed; anything else that is no event is
  // Error{Corrupt}.
  LineageJournal(FileSystem& fs, std::string path);

  // Appends those of `events` that are not there yet (by their number), durable on return.
  void append(const std::vector<LineageEvent>& events);
  const std::vector<LineageEvent>& events() const { return events_; }
  int64_t last_number() const { return static_cast<int64_t>(events_.size()); }

 private:
  FileSystem& fs_;
  std::string path_;
  std::vector<LineageEvent> events_;
};

// For readers beside a running watcher: as the journal, but a torn last line is left alone.
std::vector<LineageEvent> read_lineage(FileSystem& fs, const std::string& path);

struct LineageFile {
  std::string digest;
  std::vector<std::string> names;  // the first is the one that was used; the others were duplicates
  int64_t bytes = 0;
  std::string accepted, status;         // time; waiting, in run 0003, rejected: why
  std::vector<std::string> trained;     // releases whose run trained on it
  std::vector<std::string> releases;    // those and all that descend from them, in order
  std::vector<std::string> candidates;  // rejected ones that trained on it
};

struct LineageRelease {
  std::string name, parent, time;
  nlohmann::ordered_json event;        // "promoted", "rejected" or "base_released"
  std::vector<std::string> files;      // digests that its own run trained on
  std::vector<std::string> inherited;  // digests of its ancestors
  bool promoted = true;
};

struct LineageIndex {
  std::map<std::string, LineageFile> files;        // by digest
  std::map<std::string, LineageRelease> releases;  // by name; rejected candidates too
  std::string serving;
};
LineageIndex index_lineage(const std::vector<LineageEvent>& events);

// Digests that must not be used again: accepted and not found to be bad input.
std::set<std::string> used_digests(const std::vector<LineageEvent>& events);

}  // namespace hearth
