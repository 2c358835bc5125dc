#include <algorithm>

#include "data/chat/case_tables.h"
#include "data/chat/text.h"

namespace hearth::chat {

namespace {

bool in_ranges(std::span<const CodeRange> ranges, char32_t c) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), c,
                       [](char32_t code, const CodeRange& range) { return code < range.first; });
  return after != ranges.begin() && c <= std::prev(after)->last;
}

std::u32string moved(char32_t c, int distance) {
  return {static_cast<char32_t>(static_cast<int>(c) + distance)};
}

}  // namespace

std::optional<CaseMap> find_case_map(char32_t c) {
  const auto special = std::lower_bound(kCaseSpecials.begin(), kCaseSpecials.end(), c,
                                        [](const CaseSpecial& s, char32_t code) { return s.code < code; });
  if (special != kCaseSpecials.end() && special->code == c)
    return CaseMap{special->kind, special->upper, special->lower, special->title};
  auto row = std::upper_bound(kCaseRows.begin(), kCaseRows.end(), c,
                              [](char32_t code, const CaseRow& r) { return code < r.first; });
  // The generator lets at most two rows grow at a time, so the one sought is among the last four that began.
  for (int back = 0; back < 4 && row != kCaseRows.begin(); ++back) {
    --row;
    if (c <= row->last && (c - row->first) % row->step == 0)
      return CaseMap{row->kind, moved(c, row->upper), moved(c, row->lower), moved(c, row->title)};
  }
  return std::nullopt;
}

bool is_case_ignorable(char32_t c) {
  if (c < 0x80) return c == '\'' || c == '.' || c == ':' || c == '^' || c == '`';
  return in_ranges(kIgnorable, c);
}

bool is_class(char32_t c, CharacterClass which) {
  if (c < 0x80) {
    const bool digit = c >= '0' && c <= '9';
    return which == CharacterClass::Alphabetic ? (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') : digit;
  }
  switch (which) {
    case CharacterClass::Alphabetic:
      return in_ranges(kAlphabetic, c);
    case CharacterClass::Decimal:
      return in_ranges(kDecimal, c);
    case CharacterClass::Digit:
      return in_ranges(kDigit, c);
    case CharacterClass::Numeric:
      return in_ranges(kNumeric, c);
  }
  return false;
}

bool is_printable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c != 0x7f;
  return !in_ranges(kUnprintable, c);
}

}  // namespace hearth::chat
