// Second half of `data prepare`: the documents of all runs, in ascending order of their shuffle keys, become
// shards. A shard takes a range of keys, so shards are independent of each other, are written side by side,
// and do not depend on how the work was cut into runs.
//
// With a pack length N the documents of a shard are put into bins of N tokens (data/packing.h) and the bins
// are shuffled. What is left of a bin is filled with padding, which counts as the end of its last document.
// One more token of padding ends the shard, so that bin i is the window of N + 1 tokens that begins at i * N.
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
  bool has_loss_mask = false;  // of the runs, and so of the shards
  int64_t pack_length = 0;     // 0: documents one behind the other; else no entry of a run is longer
  int32_t padding_id = 0;
};

// Returns the new shards in order; none where the split has no document. `on_shard` (may be empty) is called
// with the number of tokens after each shard, padding left out, from any thread. Memory: about 100 bytes per
// document of a shard and thread.
std::vector<ShardInfo> write_shuffled_shards(FileSystem& fs, const std::vector<std::string>& runs,
                                             const ShuffleOptions& options,
                                             const std::function<void(int64_t)>& on_shard);

}  // namespace hearth
