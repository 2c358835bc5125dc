#include "trainer/interchange/hf_directory.h"

#include <map>
#include <set>

#include "base/error.h"
#include "base/strict_json.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/torch_pickle.h"

namespace hearth {
namespace {

// The ways in which a directory may hold its weights, in the order of preference of loaders in the field.
struct Form {
  const char *single, *index, *suffix;
};
constexpr Form kForms[] = {{"model.safetensors", "model.safetensors.index.json", ".safetensors"},
                           {"pytorch_model.bin", "pytorch_model.bin.index.json", ".bin"}};
constexpr int64_t kMaxCompanionBytes = int64_t{256} << 20;
constexpr int64_t kMaxIndexBytes = int64_t{128} << 20;

// Everything but the weights and config.json that a serving engine may look for.
constexpr const char* kCompanions[] = {"tokenizer.json",     "tokenizer_config.json",
                                       "tokenizer.model",    "special_tokens_map.json",
                                       "added_tokens.json",  "vocab.json",
                                       "merges.txt",         "chat_template.jinja",
                                       "chat_template.json", "generation_config.json"};

class SafetensorsSource final : public TensorSource {
 public:
  SafetensorsSource(FileSystem& fs, const std::string& path) : file_(fs, path) {
    for (const auto& entry : file_.entries()) infos_.push_back(entry.info);
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return file_.find(name) != nullptr; }
  const TensorInfo& info(const std::string& name) const override { return entry(name).info; }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    file_.read_elements(entry(name), begin, end, dtype, out);
  }
  std::string describe() const override { return file_.path(); }

 private:
  const SafetensorsEntry& entry(const std::string& name) const {
    const SafetensorsEntry* found = file_.find(name);
    HEARTH_CHECK(found, BadInput, "{}: has no tensor {}", file_.path(), name);
    return *found;
  }
  SafetensorsFile file_;
  std::vector<TensorInfo> infos_;
};

// All tensors of several files.
class HfWeights final : public TensorSource {
 public:
  HfWeights(FileSystem& fs, std::string directory, const std::vector<std::string>& names)
      : directory_(std::move(directory)) {
    for (const auto& name : names) {
      const std::string path = directory_ + "/" + name;
      if (name.ends_with(".bin"))
        files_.push_back(open_torch_file(fs, path));
      else
        files_.push_back(std::make_unique<SafetensorsSource>(fs, path));
      for (const TensorInfo& tensor : files_.back()->tensors()) add(*files_.back(), name, tensor);
    }
  }
  // The file that holds a tensor, empty where none does.
  std::string file_of(const std::string& tensor) const {
    const auto found = where_.find(tensor);
    return found == where_.end() ? "" : found->second.file_name;
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return where_.contains(name); }
  const TensorInfo& info(const std::string& name) const override { return place(name).file->info(name); }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    place(name).file->read_elements(name, begin, end, dtype, out);
  }
  std::string describe() const override { return directory_ + " (HF directory)"; }

 private:
  struct Place {
    const TensorSource* file;
    std::string file_name;
  };
  void add(const TensorSource& file, const std::string& file_name, const TensorInfo& tensor) {
    const auto [at, fresh] = where_.emplace(tensor.name, Place{&file, file_name});
    HEARTH_CHECK(fresh, BadInput, "{}: tensor {} lies in {} and in {}", directory_, tensor.name,
                 at->second.file_name, file_name);
    infos_.push_back(tensor);
  }
  const Place& place(const std::string& name) const {
    const auto found = where_.find(name);
    HEARTH_CHECK(found != where_.end(), BadInput, "{}: has no tensor {}", directory_, name);
    return found->second;
  }
  std::string directory_;
  std::vector<std::unique_ptr<TensorSource>> files_;
  std::map<std::string, Place> where_;
  std::vector<TensorInfo> infos_;
};

// A shard is a file of this directory: anything that could lead elsewhere is refused.
void check_shard_name(const std::string& index, const std::string& name, std::string_view suffix) {
  const bool plain = !name.empty() && name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
                     name != "." && name != "..";
  HEARTH_CHECK(plain && name.size() <= 255, BadInput, "{}: '{}' is not a file name in the same directory",
               index, name);
  HEARTH_CHECK(name.ends_with(suffix), BadInput, "{}: shard '{}' is not a {} file", index, name, suffix);
}

std::unique_ptr<TensorSource> open_sharded(FileSystem& fs, const std::string& directory, const Form& form) {
  const std::string path = directory + "/" + form.index;
  const nlohmann::json index = parse_json_strict(fs.read_text(path, kMaxIndexBytes), path);
  HEARTH_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(), BadInput,
               "{}: must be an object with an object weight_map", path);
  std::map<std::string, std::string> map;
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    HEARTH_CHECK(file.is_string(), BadInput, "{}: weight_map.{} must be a file name", path, tensor);
    map[tensor] = file.get<std::string>();
    if (shards.insert(map[tensor]).second) check_shard_name(path, map[tensor], form.suffix);
  }
  HEARTH_CHECK(!shards.empty(), BadInput, "{}: weight_map is empty", path);
  for (const auto& shard : shards)
    HEARTH_CHECK(fs.exists(directory + "/" + shard), BadInput,
                 "{}: names the shard {}, which is not there; the download is incomplete", path, shard);
  auto source =
      std::make_unique<HfWeights>(fs, directory, std::vector<std::string>(shards.begin(), shards.end()));
  for (const auto& [tensor, file] : map) {
    const std::string real = source->file_of(tensor);
    HEARTH_CHECK(real == file, BadInput, "{}: says that {} lies in {}, but {}", path, tensor, file,
                 real.empty() ? "no shard holds it" : "it is in " + real);
  }
  return source;
}

}  // namespace

bool is_hf_directory(FileSystem& fs, const std::string& directory) {
  return fs.is_directory(directory) && fs.exists(directory + "/config.json");
}

std::unique_ptr<TensorSource> open_hf_weights(FileSystem& fs, const std::string& directory) {
  for (const Form& form : kForms) {
    if (fs.exists(directory + "/" + form.single))
      return std::make_unique<HfWeights>(fs, directory, std::vector<std::string>{form.single});
    if (fs.exists(directory + "/" + form.index)) return open_sharded(fs, directory, form);
  }
  fail(ErrorKind::BadInput, "{}: has neither {} nor {} (nor {})", directory, kForms[0].single,
       kForms[0].index, kForms[1].single);
}

NamedTexts read_companion_files(FileSystem& fs, const std::string& directory) {
  NamedTexts files;
  for (const char* name : kCompanions) {
    const std::string path = directory + "/" + name;
    if (fs.exists(path)) files.emplace_back(name, fs.read_text(path, kMaxCompanionBytes));
  }
  return files;
}

const std::string* find_text(const NamedTexts& files, std::string_view name) {
  for (const auto& [key, text] : files)
    if (key == name) return &text;
  return nullptr;
}

}  // namespace hearth
