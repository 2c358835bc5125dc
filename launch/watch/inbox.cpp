#include "launch/watch/inbox.h"

#include <algorithm>
#include <array>
#include <span>

#include "base/error.h"
#include "base/hash.h"
#include "data/byte_source.h"
#include "data/tokenizer/unicode.h"

namespace hearth {
namespace {

constexpr int64_t kSlabBytes = 4 << 20;

}  // namespace

bool is_ignored_name(const std::string& name) {
  return name.starts_with('.') || name.ends_with(".tmp") || name.ends_with(".part") ||
         !unicode::is_valid_utf8(name);
}

CorpusContent corpus_content(const std::vector<std::string>& prepare_arguments) {
  std::string format = "text";
  for (size_t i = 0; i < prepare_arguments.size(); ++i) {
    if (prepare_arguments[i] == "--format" && i + 1 < prepare_arguments.size())
      format = prepare_arguments[++i];
    if (prepare_arguments[i].starts_with("--format=")) format = prepare_arguments[i].substr(9);
  }
  return format == "text" ? CorpusContent::Documents : CorpusContent::Records;
}

std::vector<SettledFiles::Found> SettledFiles::look() {
  const int64_t now = clock_.monotonic_ms();
  std::map<std::string, Seen> seen;
  std::vector<Found> settled;
  unsettled_ = 0;
  for (const auto& name : fs_.list(folder_)) {
    if (is_ignored_name(name)) continue;
    FileStamp stamp;
    try {
      stamp = fs_.stamp(folder_ + "/" + name);
    } catch (const Error&) {
      if (fs_.exists(folder_ + "/" + name)) throw;
      continue;  // it went away between the two calls
    }
    if (!stamp.regular) continue;
    const auto before = seen_.find(name);
    const bool same = before != seen_.end() && before->second.stamp == stamp;
    const Seen entry{stamp, same ? before->second.since_ms : now};
    seen[name] = entry;
    if (now - entry.since_ms >= settle_ms_)
      settled.push_back({name, stamp});
    else
      ++unsettled_;
  }
  seen_ = std::move(seen);
  return settled;
}

std::optional<std::string> copy_digested(FileSystem& fs, const std::string& from, const FileStamp& stamp,
                                         const std::string& to) {
  Xxh3Stream digest;
  try {
    const auto source = fs.open(from);
    if (source->size() != stamp.size) return std::nullopt;
    const auto copy = fs.create(to, CreateMode::Truncate);
    std::vector<std::byte> slab(static_cast<size_t>(std::min(stamp.size, kSlabBytes)));
    for (int64_t at = 0; at < stamp.size; at += kSlabBytes) {
      const auto part = std::span(slab).first(static_cast<size_t>(std::min(kSlabBytes, stamp.size - at)));
      source->read_at(at, part);
      digest.update(part);
      copy->write(part);
    }
    copy->sync();  // the inbox file is removed on the strength of this copy
    copy->close();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::Io || fs.exists(from)) throw;
    if (fs.exists(to)) fs.remove(to);
    return std::nullopt;
  }
  bool same = false;
  try {
    same = fs.stamp(from) == stamp;
  } catch (const Error&) {
    if (fs.exists(from)) throw;
  }
  if (same) return digest.hex128();
  fs.remove(to);
  return std::nullopt;
}

int64_t count_documents(FileSystem& fs, const std::string& path) {
  if (path.find(".jsonl") == std::string::npos) return 1;
  int64_t documents = 0;
  bool has_text = false;
  try {
    const auto source = open_byte_source(fs, path);
    std::array<char, 1 << 16> slab{};
    while (const size_t got = source->read(slab)) {
      for (const char c : std::span(slab).first(got)) {
        if (c == '\n') documents += has_text, has_text = false;
        has_text = has_text || (c != '\n' && c != ' ' && c != '\t' && c != '\r');
      }
    }
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput) throw;
    return 0;
  }
  return documents + has_text;
}

}  // namespace hearth
