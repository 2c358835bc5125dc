// Standard input to standard output of `hearth data encode` and `decode`: one JSON value a line, both ways.
#pragma once

#include <iosfwd>

#include "data/tokenizer/tokenizer.h"

namespace hearth {

// JSON strings in, JSON arrays of ids out. Bytes of a line that are not UTF-8 become U+FFFD. A line that is
// not one JSON string is Error{BadInput} "stdin:LINE: ..."; the lines before it have been written.
void encode_lines(const Tokenizer& tokenizer, SpecialTokens special, std::istream& in, std::ostream& out);

// JSON arrays of ids in, JSON strings out. An id outside the vocabulary is Error{BadInput} too.
void decode_lines(const Tokenizer& tokenizer, DecodeSpecial special, std::istream& in, std::ostream& out);

}  // namespace hearth
