// The trainer's own forward pass over one short prompt, on the CPU in fp32: what `hearth export` compares.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/bootstrap.h"
#include "parallel/parallel_config.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

// Logits [ids.size(), vocab_size], row-major, on every rank of the job; collective. A rank holds its share of
// the model under `layout` (answering_layout), 4 bytes a parameter, while it runs. Deterministic: equal
// weights, configuration and layout give equal bits. ids must be below vocab_size.
std::vector<float> prompt_logits(Job& job, const ParallelConfig& layout, const ModelConfig& config,
                                 const TensorSource& tensors, const std::vector<int32_t>& ids);

}  // namespace hearth
