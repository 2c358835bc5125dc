#include "data/chat/token_alignment.h"

#include <algorithm>
#include <string>

#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/sentencepiece_model.h"
#include "data/tokenizer/unicode.h"

namespace hearth {
namespace {

constexpr std::string_view kUnderline = "\xe2\x96\x81";  // SentencePiece's space

// What a token may stand for, likeliest first: bytes in the alphabet of byte-level BPE, one byte of
// SentencePiece's byte fallback, a piece with U+2581 for spaces, its own name (an added token).
std::vector<std::string> readings(const std::string& token) {
  std::vector<std::string> all;
  if (auto bytes = alphabet_to_bytes(token)) all.push_back(std::move(*bytes));
  if (const int byte = byte_of_piece(token); byte >= 0) all.emplace_back(1, static_cast<char>(byte));
  if (token.find(kUnderline) != std::string::npos) all.push_back(replace_all(token, kUnderline, " "));
  all.push_back(token);
  return all;
}

// The range of the token at `at`; nullopt where the text goes on otherwise.
std::optional<ByteRange> match_at(std::string_view text, size_t at,
                                  const std::vector<std::string>& readings) {
  for (const auto& reading : readings)
    if (text.substr(at).starts_with(reading)) return ByteRange{at, at + reading.size()};
  for (std::string_view reading : readings) {  // the first space may be the one that was put before the text
    if (!reading.starts_with(' ')) continue;
    reading.remove_prefix(1);
    if (text.substr(at).starts_with(reading)) return ByteRange{at, at + reading.size()};
  }
  return std::nullopt;
}

size_t skip_white_space(std::string_view text, size_t at) {
  while (at < text.size() && unicode::is_white_space(unicode::decode_at(text, at)))
    at += unicode::sequence_length(static_cast<unsigned char>(text[at]));
  return at;
}

}  // namespace

std::optional<std::vector<ByteRange>> align_tokens(const Tokenizer& tokenizer, std::string_view text,
                                                   std::span<const int32_t> ids) {
  std::vector<ByteRange> ranges;
  ranges.reserve(ids.size());
  size_t at = 0;
  for (const int32_t id : ids) {
    const auto texts = readings(tokenizer.id_to_token(id));
    auto range = match_at(text, at, texts);
    const bool character_begins = at >= text.size() || (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80;
    if (!range && character_begins) range = match_at(text, skip_white_space(text, at), texts);
    if (!range) return std::nullopt;
    ranges.push_back(*range);
    at = range->second;
  }
  if (skip_white_space(text, at) != text.size()) return std::nullopt;
  return ranges;
}

std::vector<uint8_t> tokens_inside(std::span<const ByteRange> tokens, std::span<const ByteRange> ranges) {
  std::vector<uint8_t> mask(tokens.size(), 0);
  const auto holds_something = [](const ByteRange& token) { return token.first < token.second; };
  for (const auto& [begin, end] : ranges) {
    if (begin >= end) continue;
    size_t first = 0, last = tokens.size();
    while (first < tokens.size() && (tokens[first].second <= begin || !holds_something(tokens[first])))
      ++first;
    while (last > first && (tokens[last - 1].first >= end || !holds_something(tokens[last - 1]))) --last;
    std::fill(mask.begin() + static_cast<std::ptrdiff_t>(first),
              mask.begin() + static_cast<std::ptrdiff_t>(last), uint8_t{1});
  }
  return mask;
}

}  // namespace hearth
