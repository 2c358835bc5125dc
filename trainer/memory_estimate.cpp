#include "trainer/memory_estimate.h"

#include <algorithm>

#include "base/dtype.h"
#include "base/error.h"

namespace hearth {

MemoryEstimate estimate_memory(const ExperimentConfig& config, int64_t data_parallel_size) {
  const ModelConfig& m = config.model;
  const DType dtype = dtype_from_config(config.precision.dtype).value_or(DType::F32);
  const int64_t element = size_bytes(dtype), count = parameter_count(m);
  const int64_t owners = config.parallel.zero_stage >= 1 ? data_parallel_size : 1;
  const int64_t masters = dtype == DType::F32 ? 0 : 4;  // fp32 parameters are their own masters
  MemoryEstimate estimate;
  estimate.parameters = count * element;
  estimate.gradients = count * 4;
  estimate.optimizer = count * (8 + masters) / owners;

  const auto rebuilt = [&](const char* module) {
    const auto& modules = config.recompute.modules;
    return config.recompute.granularity == "selective" &&
           std::find(modules.begin(), modules.end(), module) != modules.end();
  };
  const int64_t tokens = config.training.micro_batch_size * config.data.seq_length;
  const int64_t heads = m.num_attention_heads * m.head_width(), kv = m.kv_heads() * m.head_width();
  // Kept per token and layer: two block inputs, q, k, v and context, gate and up; what is not rebuilt; fp32 statistics.
  int64_t kept = 2 * m.hidden_size + (heads + 2 * kv) + heads + 2 * m.intermediate_size;
  if (!rebuilt("norm")) kept += 2 * m.hidden_size;
  if (!rebuilt("swiglu")) kept += m.intermediate_size;
  if (m.qk_norm) kept += heads + kv;
  const int64_t statistics = 4 * (2 + m.num_attention_heads);
  estimate.activations = tokens * (m.num_hidden_layers * (kept * element + statistics) + 3 * m.hidden_size * element);
  constexpr int64_t kLogitsChunkBytes = int64_t{256} << 20;  // rows_per_logits_chunk
  estimate.logits = std::min(kLogitsChunkBytes, tokens * m.vocab_size * element);
  return estimate;
}

}  // namespace hearth
