"""Text to compare tokenizers on: from what every Python installation carries, and made up from a seed."""
import pathlib
import random
import sysconfig
import unicodedata

_EMOJI = ["\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e8\U0001f1f3",
          "\U0001f44d\U0001f3fd", "\u2603", "\U0001fae8", "1\ufe0f\u20e3"]
_SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\x85", "\x0b", "   \n"]


def english_and_code(rng, size):
    """Documents cut from the standard library: source, doc strings, the manual topics of pydoc."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    files = [f for f in files if "site-packages" not in f.parts]
    rng.shuffle(files)
    total = 0
    while total < size:
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace")
            for at in range(0, len(text), 8000):
                yield text[at:at + 8000]
                total += 8000
            if total >= size:
                return


def words_of(vocabulary):
    """The readable tokens of a vocabulary: words in many languages, Chinese among them."""
    return [w for w in vocabulary if "\ufffd" not in w and w]


def word_salad(rng, words):
    return "".join(rng.choice(words) + rng.choice(["", "", " ", rng.choice(_SPACES)]) for _ in range(rng.randint(1, 600)))


def chinese(rng):
    marks = "\uff0c\u3002\uff01\uff1f\u3001\uff1a\u300a\u300b"
    out = []
    for _ in range(rng.randint(1, 80)):
        out += [chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 20))]
        out.append(rng.choice(marks))
        if rng.random() < 0.2:
            out.append(str(rng.randint(0, 10**rng.randint(1, 12))) + rng.choice(["", "km", " "]))
    return "".join(out)


def any_character(rng):
    kind = rng.random()
    if kind < 0.3:
        return chr(rng.randint(0, 0x17F))
    if kind < 0.6:
        return chr(rng.choice([c for c in (rng.randint(0, 0xFFFF),) if not 0xD800 <= c < 0xE000] or [0x41]))
    if kind < 0.7:
        return chr(rng.randint(0x300, 0x36F))
    if kind < 0.8:
        return rng.choice(_EMOJI)
    if kind < 0.9:
        return rng.choice(_SPACES)
    return chr(rng.randint(0x10000, 0x3FFFF))


def characters(rng):
    return "".join(any_character(rng) for _ in range(rng.randint(1, 1500)))


def combining(rng):
    base = "aeiouAEIOUnscyz\u0441\u0915\u1100\uac00\u03b1\u05d0\u0627\u1161\u11a8"
    form = rng.choice(["NFC", "NFD", "NFKC", "NFKD"])
    text = "".join(rng.choice(base) + "".join(chr(rng.choice([0x300, 0x301, 0x302, 0x308, 0x323, 0x327, 0x345, 0x5B0,
                                                              0x64B, 0x93C, 0x1161, 0x11A8, 0x3099]))
                                              for _ in range(rng.randint(0, 3))) for _ in range(rng.randint(1, 300)))
    return unicodedata.normalize(form, text) if rng.random() < 0.5 else text


def controls(rng):
    return "".join(chr(rng.choice([*range(32), 127, *range(0x80, 0xA0), 0xFEFF, 0xFFFD, 0x200D, 0x41, 0x20]))
                   for _ in range(rng.randint(1, 400)))


def class_borders(rng):
    """Any code point before and behind characters whose merges show whether it counted as a letter, number or neither."""
    start = rng.randint(0, 0x323FF)
    return "".join(f"{chr(c)};m {chr(c)}1(A" for c in range(start, start + 200) if not 0xD800 <= c < 0xE000)


def random_bytes(rng):
    return rng.randbytes(rng.randint(1, 3000)).decode("utf-8", errors="replace")


def runs(rng):
    """Long pieces without a break, where a quadratic algorithm would show."""
    unit = rng.choice(["a", "A", " ", "\n", "ab", "\u4e00", "!", "0", "\u0301", "-=", "\u2581", " \n", "aB"])
    return unit * rng.randint(1, 3000)


def specials(rng, names):
    parts = []
    for _ in range(rng.randint(1, 40)):
        parts.append(rng.choice(names))
        parts.append(rng.choice(["", " ", "  ", "x", "\n", "Hello", "<|", "|>", "<s", "\u2581"]))
    return "".join(parts)


def documents(seed, size, words, special_names):
    """Yields texts of about `size` UTF-8 bytes together: half English and code, half of all the other kinds."""
    rng = random.Random(seed)
    prose = english_and_code(rng, size)
    words = words_of(words)
    makers = [lambda: word_salad(rng, words), lambda: chinese(rng), lambda: characters(rng), lambda: combining(rng),
              lambda: controls(rng), lambda: class_borders(rng), lambda: random_bytes(rng), lambda: runs(rng), lambda: specials(rng, special_names)]
    yield from ("", " ", "\n", "a", "\u2581", "\x00")
    done = prose_done = 0
    while done < size:
        if prose_done * 2 <= done:
            text = next(prose)
            prose_done += len(text.encode())
        else:
            text = rng.choice(makers)()
        yield text
        done += len(text.encode())
