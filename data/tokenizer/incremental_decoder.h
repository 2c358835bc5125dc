// Decoding one id at a time, for text that is shown while it is generated: holds back what may still change
// (a character whose bytes have not all arrived). Not thread-safe; the Tokenizer must outlive it.
// The windowed comparison of two decodes is the idea of Hugging Face's text-generation-inference and vLLM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace hearth {

class IncrementalDecoder {
 public:
  explicit IncrementalDecoder(const Tokenizer& tokenizer, DecodeSpecial special = DecodeSpecial::Skip)
      : tokenizer_(tokenizer), special_(special) {}

  // Ids that came before (a prompt), for context only: they yield no text.
  void prime(std::span<const int32_t> ids);

  // The text that became certain with this id; often one token's text, sometimes empty. Always whole
  // characters.
  std::string push(int32_t id);

  // What was held back, U+FFFD for an incomplete character. push may be called again afterwards.
  std::string finish();

 private:
  std::string take(
      bool complete);  // complete: nothing more comes, so an open character is given out as it is

  const Tokenizer& tokenizer_;
  DecodeSpecial special_;
  std::vector<int32_t> window_;  // ids from a little before the first one not yet shown
  size_t shown_ = 0;             // how many of window_ are shown
};

}  // namespace hearth
