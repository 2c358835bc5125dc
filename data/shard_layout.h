// What HDF5 says about a shard file: where its arrays lie, their sizes, the attributes. Refuses, with
// Error{BadInput}, everything that is not exactly the format of data/README.md: other objects or attributes,
// links that leave the file, datasets that are not one-dimensional, contiguous, unfiltered, inside the file,
// and of the exact little-endian type. After this check the bytes may be read without HDF5. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/shard.h"

namespace hearth {

struct ShardLayout {
  ShardAttributes attributes;
  int64_t token_bytes = 0;  // 2 or 4
  ByteExtent tokens, documents, block_digest;
  std::optional<ByteExtent> loss_mask, segments;
  std::vector<uint64_t> block_digests;
};

// `size_bytes`: of the file, from the file system.
ShardLayout read_shard_layout(const std::string& path, int64_t size_bytes);

}  // namespace hearth
