// The tokenizer inside a GGUF file, as the Hugging Face files that mean the same. Whoever reads the GGUF
// fills GgufTokenizerFields from its `tokenizer.*` keys; everything downstream then only knows Hugging Face
// files. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace hearth {

struct GgufTokenizerFields {
  std::string model;  // tokenizer.ggml.model: "gpt2" (byte-level BPE) or "llama" (SentencePiece)
  std::string pre;    // tokenizer.ggml.pre: "smollm", "llama-bpe", "qwen2", ...; empty if absent
  std::vector<std::string> tokens;  // tokenizer.ggml.tokens, by id
  std::vector<float> scores;        // tokenizer.ggml.scores, for "llama"; may be empty for "gpt2"
  std::vector<int32_t>
      token_types;  // tokenizer.ggml.token_type: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte
  std::vector<std::string> merges;                        // tokenizer.ggml.merges ("left right"), for "gpt2"
  std::optional<int64_t> bos_id, eos_id, unk_id, pad_id;  // tokenizer.ggml.{bos,eos,unknown,padding}_token_id
  std::optional<bool> add_bos, add_eos;                   // tokenizer.ggml.add_{bos,eos}_token
  std::optional<bool> add_space_prefix;                   // tokenizer.ggml.add_space_prefix
  std::string chat_template;                              // tokenizer.chat_template; empty if absent
};

// tokenizer.json and tokenizer_config.json. A model or `pre` that is not known is Error{BadInput} with its
// name.
TokenizerFiles tokenizer_files_from_gguf(const GgufTokenizerFields& fields);

}  // namespace hearth
