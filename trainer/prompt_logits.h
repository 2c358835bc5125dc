// The trainer's own forward pass over one short prompt, on the CPU in fp32: what `hearth export` compares.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

// Logits [ids.size(), vocab_size], row-major. Holds the whole model in fp32 (4 bytes a parameter) while it
// runs. Deterministic: equal weights and configuration give equal bits. ids must be below vocab_size.
std::vector<float> prompt_logits(const ModelConfig& config, const TensorSource& tensors,
                                 const std::vector<int32_t>& ids);

}  // namespace hearth
