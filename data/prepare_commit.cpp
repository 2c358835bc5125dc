#include "data/prepare_commit.h"

#include "base/error.h"
#include "base/strict_json.h"
#include "data/json_object.h"

namespace hearth {
namespace {

using nlohmann::json;

std::string commit_path(const std::string& output) {
  return prepare_work_folder(output) + "/commit.json";
}

std::string below(const std::string& output, const std::string& folder) {
  return folder.empty() ? output : output + "/" + folder;
}

}  // namespace

void commit_manifests(FileSystem& fs, const std::string& output,
                      const std::vector<std::pair<std::string, std::string>>& manifests) {
  json list = json::array();
  for (const auto& [folder, text] : manifests) list.push_back({{"folder", folder}, {"text", text}});
  fs.write_atomically(commit_path(output), json({{"manifests", list}}).dump());
  finish_interrupted_commit(fs, output);
}

void finish_interrupted_commit(FileSystem& fs, const std::string& output) {
  const std::string path = commit_path(output);
  if (!fs.exists(path)) return;
  const json parsed = parse_json_strict(fs.read_text(path), path);
  JsonObject object(parsed, path, ErrorKind::BadInput);
  const json& list = object.array("manifests");
  for (size_t i = 0; i < list.size(); ++i) {
    JsonObject item(list[i], object.place("manifests", i), ErrorKind::BadInput);
    const std::string folder = item.text("folder");
    HEARTH_CHECK(folder.empty() || folder == "train" || folder == "validation", BadInput, "{}: folder '{}'",
                 path, folder);
    fs.write_atomically(below(output, folder) + "/dataset.json", item.text("text"));
  }
  fs.remove_all(prepare_work_folder(output));
}

}  // namespace hearth
