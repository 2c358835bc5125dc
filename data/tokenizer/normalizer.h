// The `normalizer` of tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace,
// ByteLevel and Sequence. Others are Error{BadInput} by name. Immutable, thread-safe with one RegexContext
// per thread.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "data/tokenizer/regex.h"

namespace hearth {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // In place; valid UTF-8 in and out.
  virtual void apply(std::string& text, RegexContext& context) const = 0;
};

std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& spec);

// Every occurrence of `from`, left to right without overlap; an empty `from` occurs nowhere. Linear in the
// text.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// {"String": s} or {"Regex": r} of Replace and Split.
Regex pattern_from_json(const nlohmann::json& spec, const char* where);

}  // namespace hearth
