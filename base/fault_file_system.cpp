#include "base/fault_file_system.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace hearth {
namespace {

std::string parent_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

}  // namespace

std::string_view name(FileOp op) {
  switch (op) {
    case FileOp::Create:
      return "create";
    case FileOp::Write:
      return "write";
    case FileOp::Sync:
      return "fsync";
    case FileOp::Close:
      return "close";
    case FileOp::Open:
      return "open";
    case FileOp::Read:
      return "read";
    case FileOp::Rename:
      return "rename";
    case FileOp::Symlink:
      return "link";
    case FileOp::Remove:
      return "remove";
    case FileOp::CreateDirectory:
      return "create folder";
    case FileOp::SyncDirectory:
      return "fsync folder";
    case FileOp::List:
      return "list";
    case FileOp::FreeBytes:
      return "statvfs";
  }
  return "?";
}

class FaultWritableFile final : public WritableFile {
 public:
  FaultWritableFile(FaultFileSystem& owner, std::string path, std::unique_ptr<WritableFile> real)
      : owner_(owner), path_(std::move(path)), real_(std::move(real)) {}
  using WritableFile::write;
  void write(std::span<const std::byte> bytes) override {
    const int64_t keep = owner_.step(FileOp::Write, path_);
    const auto part = keep < 0 ? bytes : bytes.first(std::min(bytes.size(), static_cast<size_t>(keep)));
    real_->write(part);
    owner_.record(
        {FileOp::Write, path_, "", std::string(reinterpret_cast<const char*>(part.data()), part.size())});
    if (keep >= 0) owner_.fail_with(FileOp::Write, path_, EIO);
  }
  void sync() override {
    owner_.note_sync(path_);
    try {
      owner_.step(FileOp::Sync, path_);
      real_->sync();
    } catch (const Error&) {
      owner_.note_failed_sync(path_);
      throw;
    }
    owner_.record({FileOp::Sync, path_, "", ""});
  }
  void close() override {
    owner_.step(FileOp::Close, path_);
    real_->close();
    owner_.record({FileOp::Close, path_, "", ""});
  }

 private:
  FaultFileSystem& owner_;
  std::string path_;
  std::unique_ptr<WritableFile> real_;
};

class FaultReadableFile final : public ReadableFile {
 public:
  FaultReadableFile(FaultFileSystem& owner, std::string path, std::unique_ptr<ReadableFile> real)
      : owner_(owner), path_(std::move(path)), real_(std::move(real)) {}
  int64_t size() const override { return real_->size(); }
  void read_at(int64_t offset, std::span<std::byte> out) const override {
    owner_.step(FileOp::Read, path_);
    real_->read_at(offset, out);
  }

 private:
  FaultFileSystem& owner_;
  std::string path_;
  std::unique_ptr<ReadableFile> real_;
};

void FaultFileSystem::set_fault(const FileFault& fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(fault);
  fired_ = false;
}
void FaultFileSystem::clear_faults() {
  const std::lock_guard lock(mutex_);
  faults_.clear();
  calls_.clear();
}
bool FaultFileSystem::fired() const {
  const std::lock_guard lock(mutex_);
  return fired_;
}
int64_t FaultFileSystem::calls(FileOp op) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(op);
  return found == calls_.end() ? 0 : found->second;
}
std::vector<FileRecord> FaultFileSystem::records() const {
  const std::lock_guard lock(mutex_);
  return records_;
}
std::vector<std::string> FaultFileSystem::syncs() const {
  const std::lock_guard lock(mutex_);
  return syncs_;
}
std::vector<std::string> FaultFileSystem::failed_syncs() const {
  const std::lock_guard lock(mutex_);
  return failed_syncs_;
}
void FaultFileSystem::note_sync(const std::string& path) {
  const std::lock_guard lock(mutex_);
  syncs_.push_back(path);
}
void FaultFileSystem::note_failed_sync(const std::string& path) {
  const std::lock_guard lock(mutex_);
  failed_syncs_.push_back(path);
}

int64_t FaultFileSystem::step(FileOp op, const std::string& path) {
  int error = 0;
  {
    const std::lock_guard lock(mutex_);
    const int64_t call = ++calls_[op];
    for (const auto& fault : faults_) {
      if (fault.op != op || (fault.lasting ? call < fault.nth : call != fault.nth)) continue;
      fired_ = true;
      if (fault.keep_bytes >= 0 && op == FileOp::Write) return fault.keep_bytes;
      error = fault.error;
    }
  }
  if (error != 0) fail_with(op, path, error);
  return -1;
}

void FaultFileSystem::fail_with(FileOp op, const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;  // as base/posix_file_system.cpp
  const char* symbol = strerrorname_np(error);
  fail(full ? ErrorKind::NoSpace : ErrorKind::Io, "cannot {} {}: {} ({})", name(op), path,
       std::strerror(error), symbol ? symbol : "unknown errno");
}

void FaultFileSystem::record(FileRecord entry) {
  if (recording_ == Recording::Off) return;
  const std::lock_guard lock(mutex_);
  records_.push_back(std::move(entry));
}

std::unique_ptr<WritableFile> FaultFileSystem::create(const std::string& path, CreateMode mode) {
  step(FileOp::Create, path);
  auto file = real_.create(path, mode);
  record({FileOp::Create, path, "", ""});
  return std::make_unique<FaultWritableFile>(*this, path, std::move(file));
}
std::unique_ptr<ReadableFile> FaultFileSystem::open(const std::string& path) {
  step(FileOp::Open, path);
  return std::make_unique<FaultReadableFile>(*this, path, real_.open(path));
}
void FaultFileSystem::rename(const std::string& from, const std::string& to) {
  step(FileOp::Rename, from);
  real_.rename(from, to);
  record({FileOp::Rename, from, to, ""});
}
void FaultFileSystem::create_symlink(const std::string& target, const std::string& path) {
  step(FileOp::Symlink, path);
  real_.create_symlink(target, path);
  record({FileOp::Symlink, path, target, ""});
}
void FaultFileSystem::remove(const std::string& path) {
  step(FileOp::Remove, path);
  real_.remove(path);
  record({FileOp::Remove, path, "", ""});
}
// One record per name, leaves first, because each unlink may reach the disk on its own.
void FaultFileSystem::remove_all(const std::string& path) {
  if (!real_.exists(path) && !real_.is_symlink(path)) return;
  if (!real_.is_symlink(path) && real_.is_directory(path))
    for (const auto& entry : real_.list(path)) remove_all(path + "/" + entry);
  step(FileOp::Remove, path);
  real_.remove_all(path);
  record({FileOp::Remove, path, "", ""});
}
void FaultFileSystem::create_directories(const std::string& path) {
  if (path.empty() || path == "/" || real_.is_directory(path)) return;
  create_directories(parent_of(path));
  step(FileOp::CreateDirectory, path);
  real_.create_directories(path);
  record({FileOp::CreateDirectory, path, "", ""});
}
void FaultFileSystem::sync_directory(const std::string& path) {
  step(FileOp::SyncDirectory, path);
  real_.sync_directory(path);
  record({FileOp::SyncDirectory, path, "", ""});
}
std::vector<std::string> FaultFileSystem::list(const std::string& directory) {
  step(FileOp::List, directory);
  return real_.list(directory);
}
int64_t FaultFileSystem::free_bytes(const std::string& path) {
  step(FileOp::FreeBytes, path);
  return real_.free_bytes(path);
}

namespace {

// A folder or a file of the replay. Names live in folders, so a rename moves a node and not a path.
struct Node {
  bool folder = false;
  std::string target;                     // of a link
  std::map<std::string, size_t> entries;  // as the program saw them
  std::map<std::string, size_t> durable;  // as the disk has them
  std::string bytes;                      // as the disk has them
  int64_t length = 0;                     // as the program saw it
};

class Replay {
 public:
  Replay(const std::vector<FileRecord>& records, size_t done, const std::string& root,
         const std::function<Survives(size_t)>& fate)
      : records_(records), done_(done), root_(root), fate_(fate), nodes_(1) {
    nodes_[0].folder = true;
  }
  void run() {
    for (size_t i = 0; i < done_; ++i) apply(i);
  }
  void materialise(FileSystem& fs, size_t node, const std::string& path) const {
    for (const auto& [entry, child] : nodes_[node].durable) {
      const std::string target = path + "/" + entry;
      if (nodes_[child].folder) {
        fs.create_directories(target);
        materialise(fs, child, target);
        continue;
      }
      if (!nodes_[child].target.empty()) {
        fs.create_symlink(nodes_[child].target, target);
        continue;
      }
      const auto file = fs.create(target, CreateMode::Truncate);
      file->write(nodes_[child].bytes);
      file->close();
    }
  }

 private:
  // The folder that holds `path`, and the name in it.
  std::pair<size_t, std::string> place(const std::string& path) const {
    HEARTH_REQUIRE(path.substr(0, root_.size() + 1) == root_ + "/", "{} was recorded outside {}", path,
                   root_);
    size_t folder = 0;
    std::string rest = path.substr(root_.size() + 1);
    for (size_t slash = rest.find('/'); slash != std::string::npos; slash = rest.find('/')) {
      folder = nodes_[folder].entries.at(rest.substr(0, slash));
      rest = rest.substr(slash + 1);
    }
    return {folder, rest};
  }
  size_t lookup(const std::string& path) const {
    if (path == root_) return 0;
    const auto [folder, entry] = place(path);
    return nodes_[folder].entries.at(entry);
  }
  // Later records below `done` that sync the same file or folder. Paths may have changed by then, so what
  // counts is the node: the search replays renames of the path itself, which is all that the protocol does.
  bool synced_later(size_t i, FileOp op, std::string path) const {
    for (size_t j = i + 1; j < done_; ++j) {
      const FileRecord& record = records_[j];
      if (record.op == FileOp::Rename &&
          (path == record.path || path.substr(0, record.path.size() + 1) == record.path + "/"))
        path = record.to + path.substr(record.path.size());
      if (record.op == op && record.path == path) return true;
    }
    return false;
  }
  Survives name_fate(size_t i, const std::string& folder) const {
    return synced_later(i, FileOp::SyncDirectory, folder) ? Survives::Yes : fate_(i);
  }
  void apply(size_t i) {
    const FileRecord& record = records_[i];
    switch (record.op) {
      case FileOp::Create:
      case FileOp::CreateDirectory:
      case FileOp::Symlink:
        return create(i, record);
      case FileOp::Write:
        return write(i, record);
      case FileOp::Rename:
        return rename(i, record);
      case FileOp::Remove: {
        const auto [folder, entry] = place(record.path);
        nodes_[folder].entries.erase(entry);
        if (name_fate(i, parent_of(record.path)) == Survives::Yes) nodes_[folder].durable.erase(entry);
        return;
      }
      default:
        return;  // syncs act through synced_later
    }
  }
  void create(size_t i, const FileRecord& record) {
    const auto [folder, entry] = place(record.path);
    nodes_.push_back({});
    nodes_.back().folder = record.op == FileOp::CreateDirectory;
    if (record.op == FileOp::Symlink) nodes_.back().target = record.to;
    nodes_[folder].entries[entry] = nodes_.size() - 1;
    if (name_fate(i, parent_of(record.path)) == Survives::Yes)
      nodes_[folder].durable[entry] = nodes_.size() - 1;
  }
  void write(size_t i, const FileRecord& record) {
    Node& node = nodes_[lookup(record.path)];
    const Survives survives = synced_later(i, FileOp::Sync, record.path) ? Survives::Yes : fate_(i);
    const auto length = static_cast<size_t>(node.length);
    node.length += static_cast<int64_t>(record.data.size());
    if (survives == Survives::No) return;
    const auto part =
        record.data.substr(0, survives == Survives::Torn ? record.data.size() / 2 : record.data.size());
    node.bytes.resize(std::max(node.bytes.size(), length + part.size()),
                      '\0');  // a lost earlier write is a hole
    node.bytes.replace(length, part.size(), part);
  }
  void rename(size_t i, const FileRecord& record) {
    const auto [from, old_name] = place(record.path);
    const size_t node = nodes_[from].entries.at(old_name);
    nodes_[from].entries.erase(old_name);
    const auto [to, new_name] = place(record.to);
    nodes_[to].entries[new_name] = node;
    if (name_fate(i, parent_of(record.to)) != Survives::Yes) return;
    const auto found = nodes_[from].durable.find(old_name);
    if (found != nodes_[from].durable.end() && found->second == node) nodes_[from].durable.erase(found);
    nodes_[to].durable[new_name] = node;
  }

  const std::vector<FileRecord>& records_;
  size_t done_;
  std::string root_;
  const std::function<Survives(size_t)>& fate_;
  std::vector<Node> nodes_;
};

}  // namespace

void replay_crash_state(FileSystem& fs, const std::vector<FileRecord>& records, size_t done,
                        const std::string& recorded_root, const std::string& root,
                        const std::function<Survives(size_t record)>& fate) {
  Replay replay(records, done, recorded_root, fate);
  replay.run();
  replay.materialise(fs, 0, root);
}

}  // namespace hearth
