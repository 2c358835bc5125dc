// Frozen weights in NF4 (kernels/nf4_op.h): which of a model's they are, and what a rank holds of each. What
// bitsandbytes and PEFT quantise for QLoRA: the linears of the layers, not the tables, norms and biases.
// Blocks are of whole tensors, so the numbers do not depend on the layout. Pure arithmetic, no torch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/model/model_partition.h"

namespace hearth {

struct Nf4Slice {
  int64_t blocks = 0;        // held here
  int64_t whole_blocks = 0;  // of the whole matrix
  // Block b here is block first + b / run * stride + b % run of the matrix.
  int64_t first = 0, run = 1, stride = 0;
  int64_t in_matrix(int64_t block) const { return first + block / run * stride + block % run; }
  int64_t num_groups() const;  // of the whole matrix
  int64_t bytes() const;       // codes and 8-bit scales of the blocks here, fp32 scales of all groups
};

bool is_quantized(const ParameterShard& shard);
// Of a shard that is_quantized; empty where it would cut a block.
std::optional<Nf4Slice> nf4_slice(const ParameterShard& shard);
// The same; throws Error{Config}.
Nf4Slice require_nf4_slice(const ParameterShard& shard);
// Adds an entry where tensor parallelism of this size cuts a block. The size fits the model otherwise.
void check_nf4_slices(const ModelConfig& config, int64_t tensor_size, ConfigErrors& errors);
// Of all quantised shards together, with the table that the 8-bit scales are looked up in.
int64_t nf4_bytes(const std::vector<ParameterShard>& shards);

}  // namespace hearth
