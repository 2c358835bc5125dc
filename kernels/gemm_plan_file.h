// What was learnt by timing matrix products, kept over runs: a text file of one line per shape and machine,
// only ever appended to, so that ranks share it without a lock (a torn or foreign line is skipped; of two for
// one key the last counts). Knows nothing of CUDA: an algorithm is cuBLASLt's 64 opaque bytes, which it may
// be restored from under the same library version (cublasLtMatmulAlgo_t). Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/file_system.h"

namespace hearth::kernels {

using GemmAlgorithm = std::array<uint64_t, 8>;

class GemmPlanFile {
 public:
  // Reads `path` where it exists; makes its folder when the first line is written. A file that cannot be read
  // or written is as good as none: timing again costs seconds, failing would cost the run.
  GemmPlanFile(FileSystem& fs, std::string path);

  // Keys are single words (no white space) that name device, library version, shape, layout and types.
  std::optional<GemmAlgorithm> find(const std::string& key) const;
  void keep(const std::string& key, const GemmAlgorithm& algorithm);

 private:
  FileSystem& fs_;
  std::string path_;
  std::map<std::string, GemmAlgorithm> known_;
};

}  // namespace hearth::kernels
