#include "launch/folder_probe.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "base/error.h"

namespace hearth {
namespace {

void write_file(FileSystem& fs, const std::string& path, std::string_view text, CreateMode mode) {
  const auto file = fs.create(path, mode);
  file->write(text);
  file->close();
}

bool refuses_second_create(FileSystem& fs, const std::string& path) {
  write_file(fs, path, "1", CreateMode::Exclusive);
  try {
    write_file(fs, path, "2", CreateMode::Exclusive);
  } catch (const Error&) {
    return true;
  }
  return false;
}

double median_fsync_ms(FileSystem& fs, const std::string& path) {
  using Clock = std::chrono::steady_clock;
  const std::string block(64 * 1024, 'x');
  std::array<double, 5> times{};
  for (double& time : times) {
    const auto file = fs.create(path, CreateMode::Truncate);
    file->write(block);
    const auto start = Clock::now();
    file->sync();
    time = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    file->close();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void probe_inside(FileSystem& fs, const std::string& folder, FolderProbe& probe) {
  write_file(fs, folder + "/a", "new", CreateMode::Truncate);
  probe.writable = fs.read_text(folder + "/a") == "new";
  write_file(fs, folder + "/b", "old", CreateMode::Truncate);
  fs.rename(folder + "/a", folder + "/b");
  fs.sync_directory(folder);
  probe.atomic_rename = fs.read_text(folder + "/b") == "new" && !fs.exists(folder + "/a");
  probe.exclusive_create = refuses_second_create(fs, folder + "/lock");
  probe.fsync_ms = median_fsync_ms(fs, folder + "/sync");
  probe.free_bytes = fs.free_bytes(folder);
}

}  // namespace

FolderProbe probe_folder(FileSystem& fs, const std::string& path) {
  FolderProbe probe;
  probe.path = path;
  const std::string folder = fmt::format("{}/.hearth_probe_{}", path, getpid());
  try {
    fs.create_directories(folder);
    probe_inside(fs, folder, probe);
    if (!probe.usable()) probe.trouble = "the file system lacks atomic rename or exclusive create";
  } catch (const Error& error) {
    probe.trouble = error.message();
  }
  try {
    fs.remove_all(folder);
  } catch (const Error& error) {
    if (probe.trouble.empty()) probe.trouble = error.message();
  }
  return probe;
}

}  // namespace hearth
