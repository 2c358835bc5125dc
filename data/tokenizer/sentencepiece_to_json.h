// A SentencePiece BPE model written as a Hugging Face tokenizer.json that gives the same ids for the same
// text, but for control pieces: `tokenizers` recognises their text ("<s>"), sentencepiece never does. Pure.
#pragma once

#include <string>

#include "data/tokenizer/engine.h"
#include "data/tokenizer/sentencepiece_model.h"

namespace hearth {

// Error{BadInput} for what tokenizer.json cannot say (unescaped white space).
std::string tokenizer_json_from_sentencepiece(const SentencePieceModel& model,
                                              const SentencePieceOptions& options);

}  // namespace hearth
