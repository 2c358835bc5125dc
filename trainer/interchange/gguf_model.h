// What a GGUF file says about the model: configuration, weights under HF names, tokenizer fields.
// Architectures llama (which is how Mistral and SmolLM are stored too), qwen2 and qwen3. Errors:
// Error{BadInput}.
#pragma once

#include <memory>

#include "data/tokenizer/gguf_tokenizer.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/interchange/gguf.h"
#include "trainer/interchange/hf_config.h"

namespace hearth {

// Keys and switches come from the metadata and from which tensors are there (no output.weight: tied;
// attn_q.bias: biases). rope_freqs.weight (one divisor per frequency) is turned into the llama3 parameters
// that give the same divisors, and refused where none do.
HfConfig gguf_model_config(const GgufFile& file);

// The weights under HF names, all F32. Architecture llama stores the rows of q and k so that RoPE rotates
// neighbours; they are put back in HF's order, which rotates halves: HF row head*d + half*(d/2) + i is GGUF
// row head*d + 2*i + half. Thread-safe.
std::unique_ptr<TensorSource> open_gguf_weights(std::shared_ptr<const GgufFile> file,
                                                const ModelConfig& config);

// tokenizer.* as data/tokenizer/gguf_tokenizer.h wants it; null where the file has no tokenizer.
std::optional<GgufTokenizerFields> gguf_tokenizer_fields(const GgufFile& file);

}  // namespace hearth
