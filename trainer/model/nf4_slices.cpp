#include "trainer/model/nf4_slices.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/nf4_table.h"

namespace hearth {
namespace {

using kernels::kNf4Block, kernels::kNf4Group;

std::string cut_message(const ParameterShard& shard) {
  return fmt::format(
      "nf4 keeps weights in blocks of {}, which this layout cuts: a rank would hold {} x {} of {} [{}, {}]. "
      "Choose a tensor_model_parallel_size that leaves multiples of {}, or objective.quantize_base none",
      kNf4Block, shard.box.extent[0], shard.box.extent[1], shard.spec.name, shard.spec.shape[0],
      shard.spec.shape[1], kNf4Block);
}

}  // namespace

int64_t Nf4Slice::num_groups() const {
  return (whole_blocks + kNf4Group - 1) / kNf4Group;
}

int64_t Nf4Slice::bytes() const {
  return blocks * (kNf4Block / 2 + 1) + num_groups() * 4;
}

bool is_quantized(const ParameterShard& shard) {
  return shard.spec.shape.size() == 2 && shard.spec.name.starts_with("model.layers.");
}

std::optional<Nf4Slice> nf4_slice(const ParameterShard& shard) {
  const auto whole = [](int64_t elements) { return elements % kNf4Block == 0; };
  const int64_t columns = shard.spec.shape[1], width = shard.box.extent[1];
  const int64_t first = shard.box.offset[0] * columns + shard.box.offset[1], count = shard.numel();
  if (!whole(shard.spec.numel()) || !whole(first) || !whole(count)) return std::nullopt;
  Nf4Slice slice{.blocks = count / kNf4Block,
                 .whole_blocks = shard.spec.numel() / kNf4Block,
                 .first = first / kNf4Block,
                 .run = std::max<int64_t>(1, count / kNf4Block)};
  if (width == columns) return slice;
  if (!whole(columns) || !whole(width)) return std::nullopt;
  slice.run = width / kNf4Block;
  slice.stride = columns / kNf4Block;
  return slice;
}

Nf4Slice require_nf4_slice(const ParameterShard& shard) {
  const auto slice = nf4_slice(shard);
  HEARTH_CHECK(slice.has_value(), Config, "{}", cut_message(shard));
  return *slice;
}

void check_nf4_slices(const ModelConfig& config, int64_t tensor_size, ConfigErrors& errors) {
  ModelPartition partition = ModelPartition::whole(config);
  partition.tensor_size = tensor_size;
  for (partition.tensor_rank = 0; partition.tensor_rank < tensor_size; ++partition.tensor_rank)
    for (const ParameterShard& shard : parameter_shards(config, partition)) {
      if (!is_quantized(shard) || nf4_slice(shard)) continue;
      errors.require(false, "objective.quantize_base", "{}", cut_message(shard));
      return;
    }
}

int64_t nf4_bytes(const std::vector<ParameterShard>& shards) {
  int64_t bytes = 0;
  for (const ParameterShard& shard : shards)
    if (is_quantized(shard)) bytes += require_nf4_slice(shard).bytes();
  return bytes + kernels::kNf4MapSize * 4;
}

}  // namespace hearth
