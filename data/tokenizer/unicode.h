// UTF-8 and Unicode normalization for the tokenizer. All functions are pure and thread-safe.
// Text that is called "valid" here is valid UTF-8; decode_at does not check it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hearth::unicode {

// Length in bytes of the character that starts with `lead` (valid text only).
inline size_t sequence_length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// The code point that starts at text[pos]; valid text only.
char32_t decode_at(std::string_view text, size_t pos);

void append_utf8(std::string& out, char32_t code_point);

bool is_valid_utf8(std::string_view text);

// The text with every maximal ill-formed part replaced by U+FFFD (Unicode 15, section 3.9, table 3-8).
std::string replace_invalid_utf8(std::string_view text);

enum class Form { NFC, NFD, NFKC, NFKD };

// Unicode normalization (UAX 15) with the data of the release that `tokenizers` uses. Valid text in and out.
std::string normalize(std::string_view valid, Form form);

// Character by character, as `tokenizers` lowercases (no final sigma rule).
std::string lowercase(std::string_view valid);

// A copy in which characters that PCRE2 classes otherwise than Oniguruma's newer Unicode tables are replaced
// by ones of the right class and the same length, so that offsets of matches stay; false (and out untouched)
// if there are none.
bool substitute_new_characters(std::string_view valid, std::string& out);

// White_Space of Unicode.
bool is_white_space(char32_t c);

}  // namespace hearth::unicode
