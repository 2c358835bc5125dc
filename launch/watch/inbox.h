// The inbox of `hearth watch`: which files are whole, and a copy of each under its digest. A file is copied,
// never renamed: whoever still has it open could write into what was digested already, and an inbox is often
// another file system. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file_system.h"
#include "data/corpus.h"

namespace hearth {

// Names of partial uploads (".x", "x.tmp", "x.part"), and names that no JSON can hold.
bool is_ignored_name(const std::string& name);
// What `hearth data prepare` with these arguments reads: records where --format names something but text.
CorpusContent corpus_content(const std::vector<std::string>& prepare_arguments);

// Files whose size and time did not change while somebody looked for `settle_ms`. Only what the watcher saw
// itself counts: times of files come from other clocks. Starts afresh with the process.
class SettledFiles {
 public:
  SettledFiles(FileSystem& fs, Clock& clock, std::string folder, int64_t settle_ms)
      : fs_(fs), clock_(clock), folder_(std::move(folder)), settle_ms_(settle_ms) {}
  struct Found {
    std::string name;
    FileStamp stamp;
  };
  // The files that are settled now, by name. Links and folders are left alone.
  std::vector<Found> look();
  int64_t unsettled() const { return unsettled_; }  // files that the last look() found but did not return

 private:
  struct Seen {
    FileStamp stamp;
    int64_t since_ms = 0;
  };
  FileSystem& fs_;
  Clock& clock_;
  std::string folder_;
  int64_t settle_ms_;
  std::map<std::string, Seen> seen_;
  int64_t unsettled_ = 0;
};

// Copies `from` to `to`, durable but for the name, and returns the XXH3-128 of the bytes; nothing (and no
// `to`) where `from` changed meanwhile or went away.
std::optional<std::string> copy_digested(FileSystem& fs, const std::string& from, const FileStamp& stamp,
                                         const std::string& to);

// Documents as a trigger counts them: lines with text of a .jsonl, 1 for another file; 0 where it cannot be
// read (the ingestion says why).
int64_t count_documents(FileSystem& fs, const std::string& path);

}  // namespace hearth
