// The `pre_tokenizer` of tokenizer.json: cuts a text into pieces that BPE treats one by one. Split,
// ByteLevel, Digits, Metaspace, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit,
// BertPreTokenizer and Sequence; others are Error{BadInput} by name. Immutable, thread-safe with one
// RegexContext per thread.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "data/tokenizer/function_ref.h"
#include "data/tokenizer/regex.h"

namespace hearth {

struct Piece {
  std::string_view text;  // valid UTF-8, not empty
  bool at_start;          // begins where the whole input begins (Metaspace's prepend_scheme "first" asks)
};
using PieceSink = FunctionRef<void(const Piece&)>;

// What one thread needs while pre-tokenizing.
struct PieceContext {
  RegexContext& regex;
  bool has_new_characters =
      false;  // see unicode::substitute_new_characters; set for each text by PreTokenizer::split
};

class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  // Hands the parts of `piece` to `out` in order. Their text is valid only during that call.
  virtual void split(const Piece& piece, PieceContext& context, PieceSink out) const = 0;
};

// Whether pieces leave as text, or as the raw bytes that the last ByteLevel step would have written in its
// alphabet (the model then looks bytes up directly, which saves a copy).
enum class PieceForm { Text, RawBytes };

class PreTokenizer {
 public:
  PreTokenizer() = default;  // no steps: the text is one piece
  // `preferred`: RawBytes if the model can take them; form() says what it will get.
  PreTokenizer(const nlohmann::json& spec, PieceForm preferred);

  PieceForm form() const { return form_; }
  void split(const Piece& text, RegexContext& regex, PieceSink out) const;

 private:
  void run(size_t step, const Piece& piece, PieceContext& context, PieceSink out) const;
  std::vector<std::unique_ptr<PreTokenizerStep>> steps_;
  PieceForm form_ = PieceForm::Text;
};

}  // namespace hearth
