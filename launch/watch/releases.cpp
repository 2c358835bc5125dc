#include "launch/watch/releases.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "data/shard.h"

namespace hearth {
namespace {

namespace stdfs = std::filesystem;

std::string parent_of(const std::string& path) {
  const auto parent = stdfs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

void digest_below(FileSystem& fs, const std::string& folder, const std::string& prefix,
                  std::vector<FileDigest>& out) {
  for (const auto& name : fs.list(folder)) {
    const std::string path = folder + "/" + name;
    if (fs.is_directory(path))
      digest_below(fs, path, prefix + name + "/", out);
    else
      out.push_back({prefix + name, file_digest(*fs.open(path)), fs.stamp(path).size});
  }
}

void require_link_or_nothing(FileSystem& fs, const std::string& link) {
  HEARTH_REQUIRE(fs.is_symlink(link) || !fs.exists(link),
                 "watch.serving: {} is a file or folder; it must be a link, or not exist yet. Nothing was "
                 "touched: move it away, or name another place",
                 link);
}

}  // namespace

std::string release_name(int64_t number) {
  return fmt::format("{:04d}", number);
}

std::vector<FileDigest> digest_folder(FileSystem& fs, const std::string& folder) {
  std::vector<FileDigest> files;
  digest_below(fs, folder, "", files);
  return files;
}

void require_digests(FileSystem& fs, const std::string& folder, const std::vector<FileDigest>& files) {
  HEARTH_CHECK(!files.empty(), Corrupt, "{}: no digests are known of it", folder);
  for (const auto& file : files) {
    const std::string path = folder + "/" + file.name;
    HEARTH_CHECK(fs.exists(path), Corrupt, "{} is missing: {} is not the release that was exported", path,
                 folder);
    const std::string digest = file_digest(*fs.open(path));
    HEARTH_CHECK(digest == file.digest, Corrupt,
                 "{} has digest {}, but {} was exported; serving was not touched", path, digest, file.digest);
  }
}

void publish_folder(FileSystem& fs, const std::string& from, const std::string& to) {
  if (fs.exists(from)) fs.rename(from, to);  // fails where `to` holds anything
  HEARTH_CHECK(fs.is_directory(to), Corrupt, "neither {} nor {} is there", from, to);
  fs.sync_directory(parent_of(to));  // the link must not outlive the name that it points to
  fs.sync_directory(parent_of(from));
}

void point_serving_to(FileSystem& fs, const std::string& link, const std::string& release,
                      const AtPoint& at_point) {
  require_link_or_nothing(fs, link);
  fs.create_directories(parent_of(link));
  // Relative, so that it holds where the tree is mounted under another name.
  const std::string target =
      stdfs::canonical(release).lexically_relative(stdfs::canonical(parent_of(link))).string();
  if (fs.is_symlink(link) && fs.read_symlink(link) == target) {
    fs.sync_directory(parent_of(link));
    return;
  }
  const std::string temporary = link + ".hearth-next";
  if (fs.is_symlink(temporary)) fs.remove(temporary);
  fs.create_symlink(target, temporary);
  at_point("watch.promote.link_made");
  fs.rename(temporary, link);
  fs.sync_directory(parent_of(link));
}

std::string release_served(FileSystem& fs, const std::string& link, const std::string& releases) {
  require_link_or_nothing(fs, link);
  if (!fs.is_symlink(link)) return "";
  std::error_code code;
  const stdfs::path target = stdfs::weakly_canonical(link, code), home = stdfs::weakly_canonical(releases);
  HEARTH_REQUIRE(
      !code && target.parent_path() == home && fs.is_directory(target.string()),
      "watch.serving: {} points to {}, which is no release of {}. Nothing was touched: remove the link, "
      "or point it to a release",
      link, fs.read_symlink(link), releases);
  return target.filename().string();
}

void remove_folder(FileSystem& fs, const std::string& folder) {
  const std::string dead = parent_of(folder) + "/dead." + stdfs::path(folder).filename().string();
  fs.remove_all(dead);
  if (!fs.exists(folder)) return;
  fs.rename(folder, dead);
  fs.sync_directory(parent_of(folder));  // before bytes go: a reader must not find the old name half empty
  fs.remove_all(dead);
}

}  // namespace hearth
