// Which bytes of a text each token stands for, and from that which tokens lie in given byte ranges of it. The
// tokenizer gives ids only; the bytes are found by walking text and tokens side by side. Pure, thread-safe.
//
// What may differ between the two: the space that SentencePiece puts before a text (or after a special
// token), white space that an added token takes along (lstrip, rstrip), and white space that a normalizer
// drops. Everything else must agree byte for byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizer/tokenizer.h"

namespace hearth {

using ByteRange = std::pair<size_t, size_t>;  // [begin, end)

// One range per id, ascending; empty ranges for tokens that stand for no byte of the text. nullopt where the
// tokens do not spell the text.
std::optional<std::vector<ByteRange>> align_tokens(const Tokenizer& tokenizer, std::string_view text,
                                                   std::span<const int32_t> ids);

// mask[i] = 1 for the tokens from the one that holds a range's first byte to the one that holds its last: a
// token that reaches over the edge of a range belongs to it. Ranges ascend.
std::vector<uint8_t> tokens_inside(std::span<const ByteRange> tokens, std::span<const ByteRange> ranges);

}  // namespace hearth
