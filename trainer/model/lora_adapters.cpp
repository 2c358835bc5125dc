#include "trainer/model/lora_adapters.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace hearth {
namespace {

constexpr std::string_view kWeight = ".weight";

std::string stem(const std::string& weight) {
  HEARTH_ASSERT(weight.size() > kWeight.size() && weight.ends_with(kWeight));
  return weight.substr(0, weight.size() - kWeight.size());
}

// "model.layers.0.self_attn.q_proj.weight" -> "q_proj"; "" for what is no linear of a layer.
std::string module_of(const std::string& name) {
  if (!name.ends_with(kWeight)) return {};
  const std::string path = stem(name), module = path.substr(path.rfind('.') + 1);
  const auto& all = lora_modules();
  return std::find(all.begin(), all.end(), module) == all.end() ? std::string() : module;
}

bool is_row_parallel(const std::string& module) {
  return module == "o_proj" || module == "down_proj";
}

ParameterShard shard_of(std::string name, std::vector<int64_t> shape, const ParameterShard& base) {
  ParameterShard shard;
  shard.spec.name = std::move(name);
  shard.spec.shape = std::move(shape);
  shard.box = Box::whole(shard.spec.shape);
  shard.unit = base.unit;
  return shard;
}

// Whole on every rank of a tensor-parallel group, each of which sees a part of its gradient.
void replicate(ParameterShard& shard, const ModelPartition& partition) {
  if (partition.tensor_size == 1) return;
  shard.sum = GradientSum::TensorParallel;
  shard.counts = partition.tensor_rank == 0;
}

ParameterShard adapter_a(const ParameterShard& base, const std::string& module, int64_t rank,
                         const ModelPartition& partition) {
  const int64_t inputs = base.spec.shape[1];
  ParameterShard a = shard_of(lora_a_name(base.spec.name), {rank, inputs}, base);
  // PEFT's kaiming_uniform_(a=sqrt(5)).
  a.spec.init = InitKind::Uniform;
  a.spec.init_std = 1.0 / std::sqrt(static_cast<double>(inputs));
  if (is_row_parallel(module)) {
    a.box.offset[1] = base.box.offset[1];
    a.box.extent[1] = base.box.extent[1];
  } else {
    replicate(a, partition);
  }
  a.storage_rows = a.box.extent[0];
  return a;
}

ParameterShard adapter_b(const ParameterShard& base, const std::string& module, int64_t rank,
                         const ModelPartition& partition) {
  ParameterShard b = shard_of(lora_b_name(base.spec.name), {base.spec.shape[0], rank}, base);
  b.spec.init = InitKind::Zeros;
  if (is_row_parallel(module)) {
    replicate(b, partition);
  } else {
    b.box.offset[0] = base.box.offset[0];
    b.box.extent[0] = base.box.extent[0];
    b.sum = base.sum;  // key/value heads that several ranks share
    b.counts = base.counts;
  }
  b.storage_rows = b.box.extent[0];
  return b;
}

}  // namespace

double LoraShape::scale() const {
  return alpha / (rslora ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
}

bool LoraShape::targets(const std::string& module) const {
  return std::any_of(target_modules.begin(), target_modules.end(),
                     [&](const std::string& target) { return target == "all-linear" || target == module; });
}

const std::vector<std::string>& lora_modules() {
  static const std::vector<std::string> modules{"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
  return modules;
}

std::string lora_a_name(const std::string& weight) {
  return stem(weight) + ".lora_A.weight";
}
std::string lora_b_name(const std::string& weight) {
  return stem(weight) + ".lora_B.weight";
}

std::vector<ParameterShard> lora_shards(const ModelConfig& config, const ModelPartition& partition,
                                        const LoraShape& lora) {
  // Linears that one GEMM computes: the A of all of them come first, then the B.
  const auto group_of = [](const std::string& module) {
    return module == "q_proj" || module == "k_proj" || module == "v_proj" ? 0
           : module == "o_proj"                                           ? 1
           : module == "down_proj"                                        ? 3
                                                                          : 2;
  };
  std::vector<ParameterShard> shards, pending_b;
  std::pair<int64_t, int> group{-1, -1};
  const auto flush = [&] {
    shards.insert(shards.end(), pending_b.begin(), pending_b.end());
    pending_b.clear();
  };
  for (const ParameterShard& base : parameter_shards(config, partition)) {
    const std::string module = module_of(base.spec.name);
    if (module.empty() || !lora.targets(module)) continue;
    const std::pair<int64_t, int> here{base.unit, group_of(module)};
    if (here != group) flush();
    group = here;
    shards.push_back(adapter_a(base, module, lora.rank, partition));
    pending_b.push_back(adapter_b(base, module, lora.rank, partition));
  }
  flush();
  return shards;
}

int64_t lora_parameter_count(const ModelConfig& config, const LoraShape& lora) {
  int64_t count = 0;
  for (const auto& shard : lora_shards(config, ModelPartition::whole(config), lora))
    count += shard.spec.numel();
  return count;
}

}  // namespace hearth
