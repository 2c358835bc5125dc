// The `decoder` of tokenizer.json: from token texts back to text. ByteLevel, Metaspace, ByteFallback, Fuse,
// Replace, Strip, BPEDecoder, Sequence; others are Error{BadInput} by name. Immutable, thread-safe with one
// RegexContext each.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/tokenizer/regex.h"

namespace hearth {

class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  // Rewrites the list; the text is its concatenation in the end.
  virtual void apply(std::vector<std::string>& tokens, RegexContext& context) const = 0;
};

std::unique_ptr<TokenDecoder> make_decoder(const nlohmann::json& spec);

}  // namespace hearth
