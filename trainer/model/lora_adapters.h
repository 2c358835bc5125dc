// Low-rank adapters (LoRA: Hu et al. 2022) as parameters: which there are, what a rank holds of them, how
// they begin. W x becomes W x + scale B A x, with A [rank, in] and B [out, rank], scale = alpha / rank, or
// alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023). Names and initial values are those of PEFT. Pure
// arithmetic, no torch. Value types, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/model/model_partition.h"

namespace hearth {

struct LoraShape {
  int64_t rank = 0;  // 0: no adapters
  double alpha = 16;
  bool rslora = false;
  std::vector<std::string> target_modules = {
      "all-linear"};  // or of q_proj k_proj v_proj o_proj gate_proj ...
  bool operator==(const LoraShape&) const = default;
  double scale() const;
  bool targets(const std::string& module) const;  // "q_proj"
};

// The linears that adapters can be on, in forward order.
const std::vector<std::string>& lora_modules();

// "model.layers.0.self_attn.q_proj.weight" -> "model.layers.0.self_attn.q_proj.lora_A.weight".
std::string lora_a_name(const std::string& weight);
std::string lora_b_name(const std::string& weight);

// The adapters of the linears that the rank holds, in forward order; the A of q, k and v (and of gate and up)
// are neighbours, and so are their B. Of a column-parallel linear A is whole on every tensor-parallel rank
// and B is split by rows as the linear is; of a row-parallel one A is split by columns and B is whole. What
// is whole collects its gradient over the tensor-parallel ranks.
std::vector<ParameterShard> lora_shards(const ModelConfig& config, const ModelPartition& partition,
                                        const LoraShape& lora);
int64_t lora_parameter_count(const ModelConfig& config, const LoraShape& lora);

}  // namespace hearth
