// What Python's str knows of characters beyond ASCII: upper, lower and title case, and which ones repr
// escapes. The tables are made by make_case_tables.py; pure functions look them up.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace hearth::chat {

enum class LetterCase { Upper, Lower, Title };

struct CaseMap {
  LetterCase kind;
  std::u32string upper, lower, title;
};
// The map of a cased character that is not ASCII; nothing for the others.
std::optional<CaseMap> find_case_map(char32_t c);
// Unicode's Case_Ignorable: what may stand inside of a word.
bool is_case_ignorable(char32_t c);

// first, first + step .. last: each map is one character, at a constant distance.
struct CaseRow {
  char32_t first, last, step;
  LetterCase kind;
  int upper, lower, title;
};
struct CaseSpecial {
  char32_t code;
  LetterCase kind;
  const char32_t *upper, *lower, *title;
};
struct CodeRange {
  char32_t first, last;
};
extern const std::span<const CaseRow> kCaseRows;  // by `first`; at most two rows interleave
extern const std::span<const CaseSpecial> kCaseSpecials;
extern const std::span<const CodeRange> kUnprintable, kIgnorable;
extern const std::span<const CodeRange> kAlphabetic, kDecimal, kDigit, kNumeric;

}  // namespace hearth::chat
