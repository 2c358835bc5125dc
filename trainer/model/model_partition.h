// Which part of a model one rank holds: layers by pipeline chunk, slices of each matrix by tensor-parallel
// rank (column- and row-parallel linears, vocabulary-parallel tables: Megatron-LM, Shoeybi et al. 2019). Pure
// arithmetic over parameter_specs(); no torch, no communication. Value types, thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

constexpr int64_t kVocabPadding = 128;  // rows; keeps every GEMM dimension a multiple of a 128-wide tile

// Layers that run together as one virtual pipeline stage.
struct ModelChunk {
  int64_t first_layer = 0, num_layers = 0;
  bool embedding = false, head = false;  // head: final norm, head and loss
  bool operator==(const ModelChunk&) const = default;
};

struct ModelPartition {
  int64_t tensor_size = 1, tensor_rank = 0;
  bool sequence_parallel = true;   // norms and residuals see 1/tensor_size of the rows
  std::vector<ModelChunk> chunks;  // of this rank, by its chunk number
  bool tied_ends_apart = false;    // a tied embedding whose other end is on another pipeline rank

  static ModelPartition whole(const ModelConfig& config);
  bool has_embedding() const;
  bool has_head() const;
};

// One chunk per virtual stage; `layers` as split_layers() gives them.
std::vector<ModelChunk> model_chunks(const std::vector<int>& layers);

// Over which ranks the gradients of a parameter must still be added after data parallelism did its part.
enum class GradientSum {
  None,
  TensorParallel,  // replicated there, each rank saw its rows or heads only: norms
  KvReplicas,      // key/value heads that several tensor-parallel ranks share
  TiedEmbedding,   // first and last pipeline stage each hold the table
};

// One parameter as a rank holds it.
struct ParameterShard {
  ParameterSpec spec;        // of the whole model
  Box box;                   // the part held here; may have no rows (the last share of a small vocabulary)
  int64_t storage_rows = 0;  // rows in memory: those of `box`, and padding for vocabulary tables
  bool counts = true;        // of all ranks that hold the same elements, the one that saves and measures them
  GradientSum sum = GradientSum::None;
  int64_t unit = 0;  // what is used together: 0 embedding, 1 + layer, 1 + num_hidden_layers head
  std::vector<int64_t> shape() const { return box.extent; }
  int64_t numel() const;
  int64_t row_elements() const;  // elements of one row of the box
  int64_t storage_elements() const { return storage_rows * row_elements(); }
};

// The parameters of a rank in forward order; q, k, v (and gate, up) of a layer stay neighbours.
// Throws Error{Config} where heads or widths do not divide: see require_tensor_parallel.
std::vector<ParameterShard> parameter_shards(const ModelConfig& config, const ModelPartition& partition);

// Query heads and intermediate_size must divide; key/value heads must divide the size or be divided by it.
// The vocabulary is padded and takes any size. Adds an entry for each that does not, keys as in the
// experiment file.
void check_tensor_parallel(const ModelConfig& config, int64_t tensor_size, ConfigErrors& errors);
// The same as an Error{Config}.
void require_tensor_parallel(const ModelConfig& config, int64_t tensor_size);

// Heads that one tensor-parallel rank computes.
struct LocalHeads {
  int64_t query = 0, kv = 0, first_kv = 0;
  int64_t replicas = 1;  // tensor-parallel ranks that share each key/value head
};
LocalHeads local_heads(const ModelConfig& config, int64_t tensor_size, int64_t tensor_rank);

// Vocabulary rows of one tensor-parallel rank: ids [first, first + count); `storage` rows in memory.
struct VocabShare {
  int64_t first = 0, count = 0, storage = 0;
};
VocabShare vocab_share(int64_t vocab_size, int64_t tensor_size, int64_t tensor_rank);

// Elements [begin, end) of `box` (row-major within the box) as runs of the whole tensor of `shape`:
// visit(first element of the run in the whole tensor, first in the box, count), in order.
template <class Visit>
void for_each_run(const std::vector<int64_t>& shape, const Box& box, int64_t begin, int64_t end,
                  const Visit& visit) {
  const int64_t columns = shape.size() > 1 ? shape[1] : 1;
  const int64_t width = shape.size() > 1 ? box.extent[1] : 1, column = shape.size() > 1 ? box.offset[1] : 0;
  if (width == columns) {  // whole rows: one run
    if (begin < end) visit(box.offset[0] * columns + begin, begin, end - begin);
    return;
  }
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / width, in_row = at % width, count = std::min(width - in_row, end - at);
    visit((box.offset[0] + row) * columns + column + in_row, at, count);
    at += count;
  }
}

}  // namespace hearth
