// Shared by the SentencePiece engine and the conversion to tokenizer.json. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "data/tokenizer/sentencepiece_model.h"

namespace hearth {

// Per piece: 0 for the best score, the same number for equal scores.
std::vector<int32_t> sentencepiece_ranks(const SentencePieceModel& model);

}  // namespace hearth
