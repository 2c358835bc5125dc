// What differs between tokenizer.json and tokenizer.model: how text becomes ids. Tokenizer owns one engine.
// Immutable after construction; all calls are thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/sentencepiece_model.h"
#include "data/tokenizer/tokenizer.h"

namespace hearth {

struct TokenInfo {
  std::string text;
  bool special = false;
};

class TokenizerEngine {
 public:
  virtual ~TokenizerEngine() = default;
  virtual std::vector<int32_t> encode(std::string_view valid_utf8, SpecialTokens special) const = 0;
  virtual std::string decode(std::span<const int32_t> ids, DecodeSpecial special) const = 0;
  virtual std::optional<int32_t> token_to_id(std::string_view token) const = 0;
  const std::vector<TokenInfo>& tokens() const { return tokens_; }  // by id, no holes

 protected:
  std::vector<TokenInfo> tokens_;
};

// From the parsed tokenizer.json.
std::unique_ptr<TokenizerEngine> make_json_engine(const nlohmann::json& spec);

// What tokenizer_config.json says beside a tokenizer.model; SentencePiece itself adds nothing.
struct SentencePieceOptions {
  std::vector<int32_t> before, after;  // ids added with SpecialTokens::Add
};
std::unique_ptr<TokenizerEngine> make_sentencepiece_engine(const SentencePieceModel& model,
                                                           const SentencePieceOptions& options);

}  // namespace hearth
