// Folders of releases and the link that serving engines read. The link is replaced by a rename, so a reader
// sees the old release or the new one, each of them whole. Functions, not thread-safe: one writer.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"
#include "launch/watch/watch_state.h"

namespace hearth {

using AtPoint = std::function<void(std::string_view)>;

std::string release_name(int64_t number);  // "0003"

// Every file below `folder`, sorted by name, with its digest.
std::vector<FileDigest> digest_folder(FileSystem& fs, const std::string& folder);
// Throws Error{Corrupt} that names the first file that is missing or has other bytes.
void require_digests(FileSystem& fs, const std::string& folder, const std::vector<FileDigest>& files);

// Renames `from` to `to` durably; does nothing where that was done.
void publish_folder(FileSystem& fs, const std::string& from, const std::string& to);

// Makes `link` point to the folder `release`, in one step and durably. Throws Error{Usage} where `link` is a
// file or folder of its own.
void point_serving_to(FileSystem& fs, const std::string& link, const std::string& release,
                      const AtPoint& at_point);
// The release below `releases` that `link` points to, "" where there is no link. Throws Error{Usage} for
// anything else under that name.
std::string release_served(FileSystem& fs, const std::string& link, const std::string& releases);

// Removes a folder so that a half-removed one never has its name.
void remove_folder(FileSystem& fs, const std::string& folder);

}  // namespace hearth
