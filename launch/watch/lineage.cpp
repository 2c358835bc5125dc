#include "launch/watch/lineage.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/strict_json.h"

namespace hearth {
namespace {

constexpr int64_t kMaxJournalBytes = int64_t{1} << 32;

struct Lines {
  std::vector<LineageEvent> events;
  std::string whole;  // the text of whole lines
  bool torn = false;
};

Lines read_lines(FileSystem& fs, const std::string& path) {
  Lines out;
  if (!fs.exists(path)) return out;
  const std::string text = fs.read_text(path, kMaxJournalBytes);
  const size_t end = text.rfind('\n');
  out.whole = end == std::string::npos ? "" : text.substr(0, end + 1);
  out.torn = out.whole.size() != text.size();
  for (size_t begin = 0; begin < out.whole.size();) {
    const size_t line_end = out.whole.find('\n', begin);
    const std::string where = fmt::format("{}:{}", path, out.events.size() + 1);
    const auto line = std::string_view(out.whole).substr(begin, line_end - begin);
    const LineageEvent event = parse_json_strict(line, where, {.kind = ErrorKind::Corrupt});
    HEARTH_CHECK(
        event.is_object() && event.value("seq", int64_t{0}) == static_cast<int64_t>(out.events.size()) + 1,
        Corrupt, "{}: not event number {}: the journal was edited or damaged", where, out.events.size() + 1);
    // Parsed again for the order of its keys, which the strict parser sorts.
    out.events.push_back(LineageEvent::parse(line));
    begin = line_end + 1;
  }
  return out;
}

std::vector<std::string> strings(const LineageEvent& event, const char* key) {
  return event.contains(key) ? event.at(key).get<std::vector<std::string>>() : std::vector<std::string>{};
}

std::string text(const LineageEvent& event, const char* key) {
  return event.contains(key) ? event.at(key).get<std::string>() : "";
}

void note_release(LineageIndex& index, const LineageEvent& event, bool promoted) {
  LineageRelease release;
  release.name = text(event, "release");
  release.parent = text(event, "parent");
  release.time = text(event, "time");
  release.event = event;
  release.files = strings(event, "files");
  release.promoted = promoted;
  for (const auto& digest : release.files) {
    auto& file = index.files[digest];
    (promoted ? file.trained : file.candidates).push_back(release.name);
    file.status = (promoted ? "in release " : "in rejected candidate ") + release.name;
  }
  std::set<std::string> inherited;
  if (const auto parent = index.releases.find(release.parent); parent != index.releases.end()) {
    inherited.insert(parent->second.files.begin(), parent->second.files.end());
    inherited.insert(parent->second.inherited.begin(), parent->second.inherited.end());
  }
  release.inherited.assign(inherited.begin(), inherited.end());
  if (promoted) {
    for (const auto* digests : {&release.files, &release.inherited})
      for (const auto& digest : *digests) index.files[digest].releases.push_back(release.name);
    index.serving = release.name;
  }
  index.releases[release.name] = std::move(release);
}

}  // namespace

std::string lineage_line(const LineageEvent& event) {
  return event.dump(-1, ' ', false, LineageEvent::error_handler_t::replace);
}

LineageJournal::LineageJournal(FileSystem& fs, std::string path) : fs_(fs), path_(std::move(path)) {
  Lines lines = read_lines(fs_, path_);
  if (lines.torn) fs_.write_atomically(path_, lines.whole);
  events_ = std::move(lines.events);
}

void LineageJournal::append(const std::vector<LineageEvent>& events) {
  std::string lines;
  std::vector<LineageEvent> fresh;
  for (const auto& event : events) {
    const int64_t number = event.at("seq").get<int64_t>();
    if (number <= last_number() + static_cast<int64_t>(fresh.size())) continue;
    HEARTH_ASSERT(number == last_number() + static_cast<int64_t>(fresh.size()) + 1);
    lines += lineage_line(event) + "\n";
    fresh.push_back(event);
  }
  if (fresh.empty()) return;
  const bool is_new = !fs_.exists(path_);
  const auto file = fs_.create(path_, CreateMode::Append);
  file->write(lines);
  file->sync();  // an event that was reported must outlive a power cut
  file->close();
  if (is_new) fs_.sync_directory(std::filesystem::path(path_).parent_path().string());
  events_.insert(events_.end(), fresh.begin(), fresh.end());
}

std::vector<LineageEvent> read_lineage(FileSystem& fs, const std::string& path) {
  return read_lines(fs, path).events;
}

LineageIndex index_lineage(const std::vector<LineageEvent>& events) {
  LineageIndex index;
  for (const auto& event : events) {
    const std::string kind = text(event, "event");
    if (kind == "file_accepted") {
      auto& file = index.files[text(event, "digest")];
      file.digest = text(event, "digest");
      file.names.insert(file.names.begin(), text(event, "name"));
      file.bytes = event.at("bytes").get<int64_t>();
      file.accepted = text(event, "time");
      file.status = "waiting";
    } else if (kind == "file_duplicate") {
      index.files[text(event, "digest")].names.push_back(text(event, "name"));
    } else if (kind == "file_rejected") {
      auto& file = index.files[text(event, "digest")];
      if (file.names.empty()) file.names.push_back(text(event, "name"));
      file.digest = text(event, "digest");
      file.status = "rejected: " + text(event, "reason");
    } else if (kind == "run_planned") {
      for (const auto& digest : strings(event, "files"))
        index.files[digest].status = "in run " + text(event, "run");
    } else if (kind == "batch_returned") {
      for (const auto& digest : strings(event, "files")) index.files[digest].status = "waiting";
    } else if (kind == "base_released" || kind == "promoted") {
      note_release(index, event, true);
    } else if (kind == "rejected") {
      note_release(index, event, false);
    } else if (kind == "serving_found") {
      index.serving = text(event, "release");
    }
  }
  return index;
}

std::set<std::string> used_digests(const std::vector<LineageEvent>& events) {
  std::set<std::string> used;
  for (const auto& event : events) {
    const std::string kind = text(event, "event");
    if (kind == "file_accepted") used.insert(text(event, "digest"));
    if (kind == "file_rejected") used.erase(text(event, "digest"));
  }
  return used;
}

}  // namespace hearth
