#include "data/tokenizer/unicode.h"

#include <algorithm>
#include <bitset>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "data/tokenizer/unicode_tables.h"

namespace hearth::unicode {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";
constexpr char32_t kHangulSBase = 0xac00, kHangulLBase = 0x1100, kHangulVBase = 0x1161, kHangulTBase = 0x11a7;
constexpr char32_t kHangulLCount = 19, kHangulVCount = 21, kHangulTCount = 28;
constexpr char32_t kHangulNCount = kHangulVCount * kHangulTCount,
                   kHangulSCount = kHangulLCount * kHangulNCount;

struct Scan {
  size_t length;  // bytes of the character, or of the maximal ill-formed part
  bool valid;
};

// Table 3-7 of the Unicode standard: which second bytes may follow a lead byte.
Scan scan_character(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(pos);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const size_t length = sequence_length(lead);
  unsigned char low = 0x80, high = 0xbf;
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  for (size_t i = 1; i < length; ++i) {
    if (pos + i >= text.size() || byte(pos + i) < low || byte(pos + i) > high) return {i, false};
    low = 0x80, high = 0xbf;
  }
  return {length, true};
}

// Skips eight ASCII bytes at a time.
size_t skip_ascii(std::string_view text, size_t pos) {
  while (pos + 8 <= text.size()) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + pos, 8);
    if (word & 0x8080808080808080ull) break;
    pos += 8;
  }
  while (pos < text.size() && static_cast<unsigned char>(text[pos]) < 0x80) ++pos;
  return pos;
}

const Expansion* find_expansion(std::span<const Expansion> table, char32_t c) {
  const auto it = std::lower_bound(table.begin(), table.end(), c,
                                   [](const Expansion& e, char32_t value) { return e.code_point < value; });
  return it != table.end() && it->code_point == c ? &*it : nullptr;
}

uint8_t combining_class(char32_t c) {
  if (c < 0x300) return 0;
  const auto it = std::lower_bound(combining_classes.begin(), combining_classes.end(), c,
                                   [](const ClassRange& r, char32_t value) { return r.last < value; });
  return it != combining_classes.end() && it->first <= c ? it->combining_class : 0;
}

void append_decomposed(std::vector<char32_t>& out, char32_t c, bool compatibility) {
  if (c < 0xa0) {
    out.push_back(c);
    return;
  }
  if (c >= kHangulSBase && c < kHangulSBase + kHangulSCount) {
    const char32_t index = c - kHangulSBase;
    out.push_back(kHangulLBase + index / kHangulNCount);
    out.push_back(kHangulVBase + index % kHangulNCount / kHangulTCount);
    if (index % kHangulTCount != 0) out.push_back(kHangulTBase + index % kHangulTCount);
    return;
  }
  const Expansion* found = compatibility ? find_expansion(compatibility_expansions, c) : nullptr;
  if (found == nullptr) found = find_expansion(canonical_expansions, c);
  if (found == nullptr) {
    out.push_back(c);
    return;
  }
  const auto part = expansion_pool.subspan(found->offset, found->length);
  out.insert(out.end(), part.begin(), part.end());
}

// Canonical ordering: each run of marks with a non-zero class is sorted by class, stably.
void order_marks(std::vector<char32_t>& text) {
  for (size_t i = 0; i < text.size();) {
    if (combining_class(text[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < text.size() && combining_class(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(i),
                     text.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

// The primary composite of two characters, or 0.
char32_t compose_pair(char32_t a, char32_t b) {
  if (a >= kHangulLBase && a < kHangulLBase + kHangulLCount && b >= kHangulVBase &&
      b < kHangulVBase + kHangulVCount)
    return kHangulSBase + ((a - kHangulLBase) * kHangulVCount + (b - kHangulVBase)) * kHangulTCount;
  if (a >= kHangulSBase && a < kHangulSBase + kHangulSCount && (a - kHangulSBase) % kHangulTCount == 0 &&
      b > kHangulTBase && b < kHangulTBase + kHangulTCount)
    return a + (b - kHangulTBase);
  const auto it = std::lower_bound(compositions.begin(), compositions.end(), std::pair(a, b),
                                   [](const Composition& entry, const std::pair<char32_t, char32_t>& value) {
                                     return std::pair(entry.first, entry.second) < value;
                                   });
  return it != compositions.end() && it->first == a && it->second == b ? it->composed : 0;
}

// UAX 15, canonical composition: a mark joins the last starter unless a mark of the same or a higher class is
// between.
void compose(std::vector<char32_t>& text) {
  size_t out = 0;
  size_t starter = text.size();  // index in the output; text.size() = none yet
  int last_class = -1;           // class of the last kept character after the starter, -1 = none
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    const int ccc = combining_class(c);
    if (starter != text.size() && last_class < (ccc == 0 ? 0 : ccc)) {
      if (const char32_t composed = compose_pair(text[starter], c); composed != 0) {
        text[starter] = composed;
        continue;
      }
    }
    if (ccc == 0) {
      starter = out;
      last_class = -1;
    } else {
      last_class = ccc;
    }
    text[out++] = c;
  }
  text.resize(out);
}

// Most text is normalized already and contains nothing at or above this value.
size_t first_at_or_above(std::string_view valid, char32_t limit) {
  for (size_t pos = skip_ascii(valid, 0); pos < valid.size();) {
    if (decode_at(valid, pos) >= limit) return pos;
    pos = skip_ascii(valid, pos + sequence_length(static_cast<unsigned char>(valid[pos])));
  }
  return valid.size();
}

}  // namespace

char32_t decode_at(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[pos + i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xe0) return (lead & 0x1f) << 6 | (byte(1) & 0x3f);
  if (lead < 0xf0) return (lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t value) {
    out.push_back(static_cast<char>(static_cast<unsigned char>(value)));
  };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 0x3f)), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t pos = skip_ascii(text, 0); pos < text.size(); pos = skip_ascii(text, pos)) {
    const Scan scan = scan_character(text, pos);
    if (!scan.valid) return false;
    pos += scan.length;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Scan scan = scan_character(text, pos);
    out.append(scan.valid ? text.substr(pos, scan.length) : kReplacement);
    pos += scan.length;
  }
  return out;
}

std::string normalize(std::string_view valid, Form form) {
  const bool compatibility = form == Form::NFKC || form == Form::NFKD;
  // Below U+0300 every character is in NFC; below U+00A0 in all forms.
  if (first_at_or_above(valid, form == Form::NFC ? 0x300 : 0xa0) == valid.size()) return std::string(valid);
  std::vector<char32_t> text;
  text.reserve(valid.size());
  for (size_t pos = 0; pos < valid.size(); pos += sequence_length(static_cast<unsigned char>(valid[pos])))
    append_decomposed(text, decode_at(valid, pos), compatibility);
  order_marks(text);
  if (form == Form::NFC || form == Form::NFKC) compose(text);
  std::string out;
  out.reserve(valid.size());
  for (const char32_t c : text) append_utf8(out, c);
  return out;
}

std::string lowercase(std::string_view valid) {
  std::string out;
  out.reserve(valid.size());
  for (size_t pos = 0; pos < valid.size();) {
    const char32_t c = decode_at(valid, pos);
    pos += sequence_length(static_cast<unsigned char>(valid[pos]));
    if (const Expansion* found = find_expansion(lowercase_expansions, c)) {
      for (const char32_t part : expansion_pool.subspan(found->offset, found->length)) append_utf8(out, part);
    } else {
      append_utf8(out, c);
    }
  }
  return out;
}

bool substitute_new_characters(std::string_view valid, std::string& out) {
  using Set = std::bitset<0x110000>;
  static const std::unique_ptr<const Set> listed = [] {
    auto set = std::make_unique<Set>();
    for (const Substitute& range : substitutes)
      for (char32_t c = range.first; c <= range.last; ++c) set->set(c);
    return set;
  }();
  bool found = false;
  for (size_t pos = skip_ascii(valid, 0); pos < valid.size();) {
    const char32_t c = decode_at(valid, pos);
    if (listed->test(c)) {
      if (!found) out.assign(valid);
      found = true;
      const auto it =
          std::lower_bound(substitutes.begin(), substitutes.end(), c,
                           [](const Substitute& range, char32_t value) { return range.last < value; });
      std::string as;
      append_utf8(as, it->as);
      out.replace(pos, as.size(), as);
    }
    pos = skip_ascii(valid, pos + sequence_length(static_cast<unsigned char>(valid[pos])));
  }
  return found;
}

bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

}  // namespace hearth::unicode
