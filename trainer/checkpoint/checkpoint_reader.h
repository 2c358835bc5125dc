// One checkpoint folder, opened for reading. Any layout reads any checkpoint: tensors are asked for by global
// element range, and only the bytes needed are read. Thread-safe after open. Errors: Error{Corrupt}.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file_system.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth {

enum class Verify {
  Manifest,    // the manifest's own digest, and every file's presence and size
  Everything,  // the digests of all files too: reads every byte
};

class CheckpointReader final : public TensorSource {
 public:
  static std::unique_ptr<CheckpointReader> open(FileSystem& fs, const std::string& directory, Verify verify);

  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return index_.count(name) != 0; }
  const TensorInfo& info(const std::string& name) const override;
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override;
  std::string describe() const override;

  const Manifest& manifest() const { return manifest_; }
  const std::string& directory() const { return directory_; }
  int64_t step() const { return manifest_.identity.step; }
  std::string state_json() const { return read_file(std::string(kStateName)); }

  // Small files beside the tensors: state.json, config.json, tokenizer/....
  bool has_file(const std::string& name) const;
  std::string read_file(const std::string& name) const;  // whole, its digest checked
  std::vector<std::string> tokenizer_files() const;      // names without the folder
  std::string tokenizer_directory() const;               // path, or "" where there is none

 private:
  CheckpointReader(FileSystem& fs, std::string directory) : fs_(fs), directory_(std::move(directory)) {}
  const ManifestTensor& tensor(const std::string& name) const;
  const ManifestFile* file(const std::string& name) const;
  std::string path_of(const ManifestFile& file) const { return directory_ + "/" + file.name; }

  FileSystem& fs_;
  std::string directory_;
  Manifest manifest_;
  std::vector<TensorInfo> infos_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::unique_ptr<ReadableFile>> files_;  // open where tensors lie in them, null elsewhere
};

// Compares a file's bytes with the manifest's digest; throws Error{Corrupt} with both digests (and what it
// holds).
void verify_file(FileSystem& fs, const std::string& directory, const Manifest& manifest,
                 const ManifestFile& file);

}  // namespace hearth
