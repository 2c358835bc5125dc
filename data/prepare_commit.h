// The last step of `data prepare`: new dataset.json files replace the old ones, all or none. They are first
// written to OUTPUT/.prepare/commit.json; a run that is killed from then on is rolled forward by the next
// one. Not thread-safe.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"

namespace hearth {

inline std::string prepare_work_folder(const std::string& output) {
  return output + "/.prepare";
}

// `manifests`: folder below `output` ("" or "train" ...), text of its dataset.json. Removes the work folder
// at the end.
void commit_manifests(FileSystem& fs, const std::string& output,
                      const std::vector<std::pair<std::string, std::string>>& manifests);

// Finishes a commit that was interrupted, if there is one.
void finish_interrupted_commit(FileSystem& fs, const std::string& output);

}  // namespace hearth
