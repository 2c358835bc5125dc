// Second half of `data prepare`: the documents of all runs, in ascending order of their shuffle keys, become
// shards. A shard takes a range of keys, so shards are independent of each other, are written side by side,
// and do not depend on how the work was cut into runs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/run_file.h"
#include "data/shard.h"

namespace hearth {

struct ShuffleOptions {
  std::string directory;  // of the dataset
  size_t split = 0;
  int64_t first_shard = 0;          // number of the first new shard
  int64_t shard_bytes = 512 << 20;  // aimed at; at most kMaxShardBytes comes out
  ShardAttributes attributes;
  int num_threads = 1;
};

// Returns the new shards in order; none where the split has no document. `on_shard` (may be empty) is called
// with the number of tokens after each shard, from any thread. Memory: about 64 bytes per document of a shard
// and thread.
std::vector<ShardInfo> write_shuffled_shards(FileSystem& fs, const std::vector<std::string>& runs,
                                             const ShuffleOptions& options,
                                             const std::function<void(int64_t)>& on_shard);

}  // namespace hearth
