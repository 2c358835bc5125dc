// manifest.json, the commit record of a checkpoint: which global tensors there are, in which slices of which
// files, and the digest of every file. A checkpoint without a manifest that verifies does not exist. Format
// version 1. Text form: one JSON object, last line `"manifest_xxh3_128": "<32 hex>"`, the digest of all bytes
// before that line. Parsing is strict: unknown or missing keys, names with `/` or `..`, sizes that do not fit
// and slices that do not cover each tensor exactly once are Error{Corrupt}.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth {

constexpr int64_t kCheckpointFormatVersion = 1;
inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kStateName = "state.json";

// What a checkpoint belongs to. Texts are opaque here; the resume contract compares them.
struct CheckpointIdentity {
  int64_t step = 0;
  std::string mesh;              // "pp=1 dp=4 cp=1 ep=1 tp=1"
  std::string config_hash;       // of the resolved experiment file
  std::string data_fingerprint;  // of the training data; empty for an imported model
  std::string tokenizer_digest;  // empty where there is no tokenizer
  bool operator==(const CheckpointIdentity&) const = default;
};

struct ManifestFile {
  std::string name;  // "rank_000.safetensors", "state.json", "tokenizer/tokenizer.json"
  int64_t bytes = 0;
  std::string digest;  // XXH3-128, 32 hex digits
  bool operator==(const ManifestFile&) const = default;
};

// Row-major elements [begin, end) of `box`, contiguous at byte `offset` of file number `file`.
struct ManifestSlice {
  int64_t file = 0;
  int64_t offset = 0;
  Box box;
  int64_t begin = 0, end = 0;
  bool operator==(const ManifestSlice&) const = default;
};

struct ManifestTensor {
  TensorInfo info;
  std::vector<ManifestSlice> slices;  // every element in exactly one
  bool operator==(const ManifestTensor&) const = default;
};

struct Manifest {
  CheckpointIdentity identity;
  int64_t attempt = 1;     // of the run that wrote it (run_lock.h)
  int64_t world_size = 1;  // that wrote it
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;  // sorted by name
  bool operator==(const Manifest&) const = default;
};

std::string serialize(const Manifest& manifest);
// `what` names the file in messages.
Manifest parse_manifest(std::string_view text, const std::string& what);

// A file name that may stand in a manifest: letters, digits, `.`, `_`, `-`, not starting with a dot, at most
// one folder, which is `tokenizer`.
bool is_safe_file_name(std::string_view name);

// Throws Error{Corrupt} unless the slices hold every element of the tensor exactly once.
void require_exact_cover(const ManifestTensor& tensor, const std::string& what);

// Calls visit(first, last, target) for each stretch of the row-major tensor that the slice holds within
// [begin, end) of the flattened tensor: elements [first, last) of the slice's own contiguous run are the
// tensor's elements [target, target + last - first). Stretches come in rising order.
using StretchVisitor = std::function<void(int64_t first, int64_t last, int64_t target)>;
void for_each_stretch(const std::vector<int64_t>& shape, const ManifestSlice& slice, int64_t begin,
                      int64_t end, const StretchVisitor& visit);

}  // namespace hearth
