// Reads SentencePiece's tokenizer.model, a protocol buffer (sentencepiece_model.proto of
// google/sentencepiece), as far as BPE models need it. Pure, thread-safe. Trouble is Error{BadInput}.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

enum class PieceType { Normal = 1, Unknown = 2, Control = 3, UserDefined = 4, Unused = 5, Byte = 6 };

struct SentencePiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::Normal;
};

struct SentencePieceModel {
  std::vector<SentencePiece> pieces;  // by id
  bool byte_fallback = false;
  std::string unknown_surface = " \xe2\x81\x87 ";  // what an unknown piece decodes to
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string normalizer_name;
};

// Refuses by name what Hearth does not do: model types other than BPE, a precompiled character map, white
// space as a suffix, unused pieces. Checks that pieces are distinct, that one is the unknown piece, and that
// byte fallback has all 256 bytes.
SentencePieceModel read_sentencepiece_model(std::string_view bytes);

// The value of a byte piece "<0xHH>", or -1.
int byte_of_piece(std::string_view piece);

}  // namespace hearth
