// A model small enough to be computed many times in a test, and yet with every part: grouped queries, two
// layers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "base/rng.h"
#include "trainer/model/transformer.h"

namespace hearth::testing {

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.vocab_size = 61;  // not a multiple of the padding
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.max_position_embeddings = 2048;
  c.initializer_range = 0.2;  // large enough that every part of the model matters to the logits
  return c;
}

struct TinyModel {
  ParameterStore parameters;
  Transformer transformer;
  explicit TinyModel(const ModelConfig& config, DType dtype = DType::F32, RecomputeChoice recompute = {},
                     WithGradients gradients = WithGradients::Yes, ParameterEvents* events = nullptr,
                     bool gradients_travel = false)
      : parameters(config, dtype, at::kCPU, gradients, /*data_parallel_size=*/1, /*bucket_elements=*/4096),
        transformer(config, parameters, recompute, ModelPartition::whole(config).chunks[0],
                    ModelContext{.events = events, .gradients_travel = gradients_travel}) {
    parameters.initialize(/*seed=*/7);
  }
};

// int64 [count], each below `vocab`.
inline at::Tensor random_ids(int64_t count, int64_t vocab, uint64_t seed) {
  const CounterRng rng(seed, "random_ids");
  at::Tensor ids = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i)
    ids.data_ptr<int64_t>()[i] =
        static_cast<int64_t>(rng.bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab));
  return ids;
}

}  // namespace hearth::testing
