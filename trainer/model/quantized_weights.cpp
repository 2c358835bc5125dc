#include "trainer/model/quantized_weights.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace hearth {

QuantizedWeights::QuantizedWeights(ParameterStore& parameters) : parameters_(parameters) {
  HEARTH_REQUIRE(parameters.options().weights == BucketMemory::LayersOnDemand,
                 "the parameter store was not made for quantised layers");
  std::vector<ParameterShard> shards;
  for (const Parameter& p : parameters.parameters()) shards.push_back(p.shard);
  parameters.memory().allocating(MemoryPart::Weights, nf4_bytes(shards));
  const auto bytes = at::TensorOptions(parameters.device()).dtype(at::kByte);
  const at::Tensor map = kernels::nf4_dynamic_map().to(parameters.device());
  for (const ParameterShard& shard : shards) {
    parts_.emplace_back();
    if (!is_quantized(shard)) continue;
    const Nf4Slice slice = require_nf4_slice(shard);
    parts_.back() = {.codes = at::empty({slice.blocks * kernels::kNf4Block / 2}, bytes),
                     .scales_B = at::empty({slice.blocks}, bytes),
                     .groups_G = at::empty({slice.num_groups()}, bytes.dtype(at::kFloat)),
                     .dynamic_map = map,
                     .place = {.first = slice.first, .run = slice.run, .stride = slice.stride}};
  }
}

void QuantizedWeights::load(const TensorSource& source) {
  parameters_.require(source);
  const auto& buckets = parameters_.plan().buckets;
  for (size_t b = 0; b < buckets.size(); ++b) {
    const auto bucket = static_cast<int64_t>(b);
    if (!parameters_.weights_on_demand(bucket)) {
      parameters_.fill_bucket(bucket, [&](int64_t index, int64_t begin, int64_t end, float* out) {
        parameters_.read(source, "", index, begin, end, out);
      });
      continue;
    }
    for (const int64_t index : buckets[b].parameters) quantize(index, source);
  }
}

void QuantizedWeights::quantize(int64_t parameter, const TensorSource& source) {
  constexpr int64_t kSlab = int64_t{1} << 24;  // 64 MiB of fp32 on the host at a time
  constexpr int64_t kBlock = kernels::kNf4Block, kBlockBytes = kBlock / 2;
  const ParameterShard& shard = parameters_.parameters()[static_cast<size_t>(parameter)].shard;
  const Nf4Slice slice = require_nf4_slice(shard);
  const int64_t numel = shard.spec.numel();
  at::Tensor slab = at::empty({std::min(numel, kSlab)}, at::kFloat);
  const at::Tensor absmax = at::empty({slice.whole_blocks}, at::kFloat),
                   codes = at::empty({slice.blocks * kBlockBytes}, at::kByte),
                   scales = at::empty({slice.blocks}, at::kByte);
  int64_t here = 0;  // blocks of this rank's that have their codes
  for (int64_t begin = 0; begin < numel; begin += kSlab) {
    const int64_t end = std::min(numel, begin + kSlab), first = begin / kBlock;
    source.read_elements(shard.spec.name, begin, end, DType::F32, slab.data_ptr<float>());
    const auto values = kernels::nf4_quantize_op(slab.narrow(0, 0, end - begin));
    at::Tensor target = absmax.narrow(0, first, values.absmax_B.numel());
    target.copy_(values.absmax_B);
    for (; here < slice.blocks && slice.in_matrix(here) < end / kBlock; ++here)
      std::memcpy(codes.data_ptr<uint8_t>() + here * kBlockBytes,
                  values.codes.const_data_ptr<uint8_t>() + (slice.in_matrix(here) - first) * kBlockBytes,
                  static_cast<size_t>(kBlockBytes));
  }
  const kernels::Nf4Scales all = kernels::nf4_quantize_scales_op(absmax);
  for (int64_t b = 0; b < slice.blocks; ++b)
    scales.data_ptr<uint8_t>()[b] = all.codes_B.const_data_ptr<uint8_t>()[slice.in_matrix(b)];
  kernels::Nf4Part& part = parts_[static_cast<size_t>(parameter)];
  part.codes.copy_(codes);
  part.scales_B.copy_(scales);
  part.groups_G.copy_(all.groups_G);
  part.mean = all.mean;
}

void QuantizedWeights::before_use(int64_t unit, UsePhase) {
  if (!parameters_.has_unit(unit)) return;
  for (const int64_t bucket : parameters_.buckets_of_unit(unit)) {
    if (!parameters_.weights_on_demand(bucket) || parameters_.has_weights(bucket)) continue;
    parameters_.restore_weights(bucket);
    for (const int64_t index : parameters_.plan().buckets[static_cast<size_t>(bucket)].parameters) {
      at::Tensor weights = parameters_.parameters()[static_cast<size_t>(index)].weight.view({-1});
      kernels::nf4_dequantize_op(parts_[static_cast<size_t>(index)], weights);
    }
  }
}

void QuantizedWeights::after_use(int64_t unit, UsePhase) {
  if (!parameters_.has_unit(unit)) return;
  for (const int64_t bucket : parameters_.buckets_of_unit(unit)) parameters_.release_weights(bucket);
}

}  // namespace hearth
