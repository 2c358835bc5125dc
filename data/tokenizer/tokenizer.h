// Text <-> token ids. Reads Hugging Face tokenizer.json files of the BPE kinds and SentencePiece
// tokenizer.model files of the BPE kind, and gives the ids that the `tokenizers` and `sentencepiece`
// libraries give for them. Not for: chat templates (only carries them), truncation and padding (what
// tokenizer.json says about these is not applied: training text must never be cut silently), sampling
// variants (dropout).
//
// A Tokenizer is immutable after loading; encode, decode and the queries may be called from any number of
// threads. Trouble with a file (truncated, unknown component, ids that do not fit together) is
// Error{BadInput}.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file_system.h"

namespace hearth {

// Whether encode adds what the tokenizer's own post-processor adds (BOS, EOS ...). Special tokens that are
// written out in the text are recognised either way, as `tokenizers` does.
enum class SpecialTokens { Add, Skip };

// Whether decode shows tokens that are marked special, or leaves them out.
enum class DecodeSpecial { Keep, Skip };

// Ids must be below this; the token shards and the largest vocabularies in use stay far away from it.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

// name -> bytes, in a fixed order.
using TokenizerFiles = std::vector<std::pair<std::string, std::string>>;

class Tokenizer {
 public:
  // `path`: a tokenizer.json, a SentencePiece tokenizer.model, or a directory that holds one of them
  // (tokenizer.json is preferred). From a directory, or from beside the file, tokenizer_config.json,
  // special_tokens_map.json and chat_template.jinja are read too.
  static std::unique_ptr<Tokenizer> load(FileSystem& fs, const std::string& path);

  // The same from memory. `files` needs tokenizer.json or tokenizer.model; `origin` names the source in
  // messages.
  static std::unique_ptr<Tokenizer> from_files(TokenizerFiles files, const std::string& origin);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Invalid UTF-8 becomes U+FFFD first, one for each maximal ill-formed part (Unicode 15, section 3.9).
  // Time grows linearly with the text but for a logarithm in the length of a single pre-token.
  std::vector<int32_t> encode(std::string_view utf8, SpecialTokens special) const;

  // The result is valid UTF-8. Ids outside the vocabulary are left out, as `tokenizers` does.
  std::string decode(std::span<const int32_t> ids, DecodeSpecial special) const;

  int64_t vocab_size() const;  // largest id + 1, added tokens included
  std::optional<int32_t> token_to_id(std::string_view token) const;
  std::string id_to_token(int32_t id) const;  // empty outside the vocabulary
  bool is_special(int32_t id) const;

  // From tokenizer_config.json, then special_tokens_map.json; where neither says anything, by the names in
  // common use
  // (<|endoftext|>, <|end_of_text|>, <|eot_id|>, <|im_end|>, </s> ...). An explicit null there means none.
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> pad_id() const;

  // The default chat template (Jinja source), from chat_template.jinja or tokenizer_config.json; empty if
  // none.
  const std::string& chat_template() const;

  // XXH3-128 of the bytes of tokenizer.json or tokenizer.model: what decides the ids.
  const std::string& digest() const;

  // The files as read: tokenizer.json or tokenizer.model, tokenizer_config.json, special_tokens_map.json,
  // chat_template.jinja. They travel with datasets and checkpoints and load again to an equal Tokenizer.
  const TokenizerFiles& files() const;

  // For serving engines: files(), and for a SentencePiece model a converted tokenizer.json and a
  // tokenizer_config.json where there was none.
  TokenizerFiles export_files() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
