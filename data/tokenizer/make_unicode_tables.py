"""Writes unicode_tables.cpp: python make_unicode_tables.py > unicode_tables.cpp

Needs Python 3.11 (unicodedata 14.0, as PCRE2 10.42 has), unicodedata2==16.0.0 and the `tokenizers` package, whose
normalizers know an older Unicode release than its regular expressions do: what it does with each single code point is
taken as the truth, so that Hearth normalizes exactly as it does.
"""
import unicodedata

import unicodedata2
from tokenizers import normalizers

assert unicodedata.unidata_version == "14.0.0" and unicodedata2.unidata_version == "16.0.0"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
NFC, NFD, NFKD, LOWER = (getattr(normalizers, n)().normalize_str for n in ("NFC", "NFD", "NFKD", "Lowercase"))


def emit(kind, name, rows, per_line):
    print(f"constexpr {kind} {name}_data[] = {{")
    for i in range(0, len(rows), per_line):
        print("    " + " ".join(rows[i:i + per_line]))
    print("};")
    print(f"const std::span<const {kind}> {name}{{{name}_data}};\n")


def h(c):
    return f"0x{c:x}"


def combining_class(c):
    """unicodedata's class where `tokenizers` knows it too: it then moves the mark before one of class 240."""
    ccc = unicodedata.combining(chr(c))
    if ccc == 0:
        return 0
    if ccc >= 234:  # the few that sort after: move U+0334 (class 1) before it instead
        return ccc if NFD(chr(c) + "\u0334") != NFD(chr(c)) + "\u0334" else 0
    return ccc if NFD("\u0345" + chr(c)) != "\u0345" + NFD(chr(c)) else 0


def expansions(normalize, skip):
    return [(c, normalize(chr(c))) for c in CODE_POINTS if c not in HANGUL and normalize(chr(c)) != skip(chr(c))]


def substitutes():
    """Code points that PCRE2's tables do not know (or class differently): one of the same length in UTF-8 and category."""
    first_of = {}
    for c in CODE_POINTS:
        if unicodedata.category(chr(c)) == unicodedata2.category(chr(c)):
            first_of.setdefault((unicodedata.category(chr(c)), len(chr(c).encode())), c)
    first_of[("Lo", 4)] = 0x20000
    runs = [[0x180E, 0x180E, 0x200B]]  # \s in PCRE2 takes the Mongolian vowel separator, which stopped being a space
    for c in CODE_POINTS:
        category = unicodedata2.category(chr(c))
        if category == unicodedata.category(chr(c)):
            continue
        key = (category, len(chr(c).encode()))
        if key not in first_of:
            continue
        if runs[-1][1] == c - 1 and runs[-1][2] == first_of[key]:
            runs[-1][1] = c
        else:
            runs.append([c, c, first_of[key]])
    return sorted(runs)


def main():
    print("// Written by make_unicode_tables.py; do not edit.")
    print('#include "data/tokenizer/unicode_tables.h"\n\nnamespace hearth::unicode {\n')
    print("// clang-format off")
    pool, index = [], {}

    def place(text):
        if text not in index:
            index[text] = len(pool)
            pool.extend(ord(x) for x in text)
        return index[text]

    canonical = expansions(NFD, lambda s: s)
    compatible = expansions(NFKD, NFD)
    rows = lambda items: [f"{{{h(c)}, {place(t)}, {len(t)}}}," for c, t in items]
    emit("Expansion", "canonical_expansions", rows(canonical), 6)
    emit("Expansion", "compatibility_expansions", rows(compatible), 6)
    emit("Expansion", "lowercase_expansions", rows([(c, LOWER(chr(c))) for c in CODE_POINTS if LOWER(chr(c)) != chr(c)]), 6)
    emit("char32_t", "expansion_pool", [h(c) + "," for c in pool], 14)
    classes = []
    for c in CODE_POINTS:
        ccc = combining_class(c)
        if ccc and classes and classes[-1][1] == c - 1 and classes[-1][2] == ccc:
            classes[-1][1] = c
        elif ccc:
            classes.append([c, c, ccc])
    emit("ClassRange", "combining_classes", [f"{{{h(a)}, {h(b)}, {v}}}," for a, b, v in classes], 6)
    pairs = []
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and NFC(chr(c)) == chr(c) and NFD(chr(c)) != chr(c):
            pairs.append((int(parts[0], 16), int(parts[1], 16), c))
    emit("Composition", "compositions", [f"{{{h(a)}, {h(b)}, {h(c)}}}," for a, b, c in sorted(pairs)], 5)
    emit("Substitute", "substitutes", [f"{{{h(a)}, {h(b)}, {h(c)}}}," for a, b, c in substitutes()], 5)
    print("// clang-format on\n}  // namespace hearth::unicode")


main()
