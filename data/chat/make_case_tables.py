#!/usr/bin/env python3
"""Writes case_tables.cpp from the Unicode data of the Python that runs it.

Run with the Python that the comparison tests use, so that both sides know the same release:
    make_case_tables.py >case_tables.cpp
Characters whose maps follow one rule are one row: `step` apart, each map a constant distance away.
"""
import sys
import unicodedata

CLASSES = {"kAlphabetic": str.isalpha, "kDecimal": str.isdecimal, "kDigit": str.isdigit, "kNumeric": str.isnumeric}
KINDS = {"Upper": str.isupper, "Lower": str.islower}


def kind_of(c):
    return next((name for name, test in KINDS.items() if test(c)), "Title")


def cased(c):
    return c.istitle() or c.isupper() or c.islower() or c.upper() != c or c.lower() != c


def literal(text):
    return 'U"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def ranges(matches):
    out = []
    for code in range(0x80, 0x110000):
        if not matches(chr(code)):
            continue
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return out


def rows():
    """(first, last, step, kind, distances of upper, lower and title), where each map is one character."""
    out = []
    for code in range(0x80, 0x110000):
        c = chr(code)
        maps = c.upper(), c.lower() if c != "\u03a3" else "\u03c3", c.title()
        if not cased(c) or any(len(m) != 1 for m in maps):
            continue
        key = (kind_of(c), *(ord(m) - code for m in maps))
        for row in out[-2:]:
            distance = code - row[1]
            if row[3:] == list(key) and distance <= 2 and (row[0] == row[1] or row[2] == distance):
                row[1], row[2] = code, distance
                break
        else:
            out.append([code, code, 1, *key])
    return sorted(out)


def is_ignorable(c):
    if c in "'.:\u00b7\u0387\u055f\u05f4\u2018\u2019\u2024\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a":
        return True
    return unicodedata.category(c) in ("Mn", "Me", "Cf", "Lm", "Sk")


def table(name, type_name, lines):
    print(f"constexpr {type_name} {name}[] = {{")
    print(",\n".join("    {" + line + "}" for line in lines))
    print("};\n")


def main():
    special = [chr(c) for c in range(0x80, 0x110000)]
    special = [c for c in special if cased(c) and any(len(m) != 1 for m in (c.upper(), c.lower(), c.title()))]
    pairs = lambda found: [f"0x{a:x}, 0x{b:x}" for a, b in found]
    print(f"// Made by make_case_tables.py from Unicode {unicodedata.unidata_version}. Do not edit.")
    print('#include "data/chat/case_tables.h"\n')
    print("namespace hearth::chat {\n\n// clang-format off")
    table("kCaseRowsData", "CaseRow",
          [f"0x{a:x}, 0x{b:x}, {s}, LetterCase::{k}, {u}, {lo}, {t}" for a, b, s, k, u, lo, t in rows()])
    table("kCaseSpecialsData", "CaseSpecial",
          [f"0x{ord(c):x}, LetterCase::{kind_of(c)}, {literal(c.upper())}, {literal(c.lower())}, {literal(c.title())}"
           for c in special])
    table("kUnprintableData", "CodeRange", pairs(ranges(lambda c: not c.isprintable())))
    table("kIgnorableData", "CodeRange", pairs(ranges(is_ignorable)))
    for name, test in CLASSES.items():
        table(f"{name}Data", "CodeRange", pairs(ranges(test)))
    print("// clang-format on\n")
    for name, type_name in (("kCaseRows", "CaseRow"), ("kCaseSpecials", "CaseSpecial"), ("kUnprintable", "CodeRange"),
                            ("kIgnorable", "CodeRange"), *((name, "CodeRange") for name in CLASSES)):
        print(f"const std::span<const {type_name}> {name} = {name}Data;")
    print("\n}  // namespace hearth::chat")


if __name__ == "__main__":
    sys.exit(main())
