// Tables behind unicode.h. Sorted by their first member. See make_unicode_tables.py for what is in them and
// why.
#pragma once

#include <cstdint>
#include <span>

namespace hearth::unicode {

struct Expansion {  // code_point becomes expansion_pool[offset, offset + length)
  char32_t code_point;
  uint16_t offset, length;
};
struct ClassRange {
  char32_t first, last;
  uint8_t combining_class;
};
struct Composition {
  char32_t first, second, composed;
};
struct Substitute {  // [first, last] behave in a regular expression as `as` does
  char32_t first, last, as;
};

extern const std::span<const Expansion> canonical_expansions;  // full canonical decomposition, without Hangul
extern const std::span<const Expansion> compatibility_expansions;  // where it differs from the canonical one
extern const std::span<const Expansion> lowercase_expansions;
extern const std::span<const char32_t> expansion_pool;
extern const std::span<const ClassRange> combining_classes;
extern const std::span<const Composition> compositions;
extern const std::span<const Substitute> substitutes;

}  // namespace hearth::unicode
