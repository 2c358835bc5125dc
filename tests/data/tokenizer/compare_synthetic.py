"""Small tokenizers of every kind of component, made and trained here, against `tokenizers` and `sentencepiece`.

    compare_synthetic.py --driver build/tests/data/tokenizer/tokenizer_driver
"""
import argparse
import itertools
import json
import pathlib
import random
import sys
import subprocess
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import corpus  # noqa: E402
from compare import HfPeer, SentencePiecePeer, first_difference, run_driver  # noqa: E402
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,  # noqa: E402
                        processors, trainers)

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
DEEPSEEK = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"]
split = pre_tokenizers.Split
byte_level = pre_tokenizers.ByteLevel
sequence = pre_tokenizers.Sequence


def byte_level_cases():
    """(name, normalizer, pre-tokenizer)"""
    for prefix, regex in itertools.product((False, True), (False, True)):
        yield f"ByteLevel {prefix} {regex}", None, byte_level(add_prefix_space=prefix, use_regex=regex)
    for name, pattern in (("llama3", LLAMA3), ("o200k", O200K), ("bloom", BLOOM)):
        yield name, None, sequence([split(Regex(pattern), "isolated"), byte_level(False, use_regex=False)])
    yield "deepseek-v3", None, sequence([split(Regex(p), "isolated") for p in DEEPSEEK] + [byte_level(False, use_regex=False)])
    behaviors = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")
    for behavior, invert in itertools.product(behaviors, (False, True)):
        yield f"Split {behavior} {invert}", None, sequence([split(Regex(r"\s+|\d|[a-e]|\w{3}(?=x)|"), behavior, invert),
                                                            byte_level(False, use_regex=False)])
        yield f"Split string {behavior}", None, sequence([split("e.", behavior), split("t", behavior, invert), byte_level(True)])
    for individual in (False, True):
        yield f"Digits {individual}", None, sequence([pre_tokenizers.Digits(individual), byte_level(False)])
    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        yield name, getattr(normalizers, name)(), byte_level(False)
    yield "normalizers", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                               normalizers.Strip(True, True), normalizers.Replace(Regex(r"\s{2,}"), " "),
                                               normalizers.Replace("e", "\u00e9")]), byte_level(True)
    yield "Strip left", normalizers.Strip(True, False), byte_level(False)
    yield "ByteLevel last but one", None, sequence([byte_level(False), split("\u0120", "isolated")])
    for behavior in behaviors:
        yield f"Punctuation {behavior}", None, sequence([pre_tokenizers.Punctuation(behavior), byte_level(False)])
    yield "Ruby classes", None, sequence([split(Regex(r"\h+|\w+|[\w-]+|(?m:a.b)|^x|y$|[[:upper:]]{,2}q|[[a-c]x]+|\u4e00"),
                                                "isolated"), byte_level(False, use_regex=False)])


def text_cases():
    """Tokenizers over characters: (name, normalizer, pre-tokenizer, decoder, model options)."""
    prepend = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                               decoders.Strip(" ", 1, 0)])
    for fuse, fallback in itertools.product((False, True), (False, True)):
        options = {"unk_token": "<unk>", "fuse_unk": fuse, "byte_fallback": fallback}
        yield f"llama {fuse} {fallback}", prepend, None, llama, options
        for scheme in ("always", "first", "never"):
            yield (f"Metaspace {scheme} {fuse} {fallback}", None, pre_tokenizers.Metaspace("\u2581", scheme, fuse),
                   decoders.Metaspace("\u2581", scheme), options)
    suffix = {"unk_token": "<unk>", "end_of_word_suffix": "</w>"}
    yield "suffix", None, pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>"), suffix
    yield "prefix", None, pre_tokenizers.WhitespaceSplit(), None, {"unk_token": "<unk>", "continuing_subword_prefix": "##"}
    yield "Bert", normalizers.NFKC(), pre_tokenizers.BertPreTokenizer(), None, {"unk_token": "<unk>", "ignore_merges": True}
    yield "delimiter", None, pre_tokenizers.CharDelimiterSplit("e"), decoders.Fuse(), {}


ADDED = [AddedToken("<a>", normalized=False, special=True), AddedToken("<a><b>", normalized=False, special=True),
         AddedToken("<l>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True, normalized=False),
         AddedToken("word", single_word=True), AddedToken("\u00c9t\u00e9", normalized=True),
         AddedToken("<lr>", lstrip=True, rstrip=True), AddedToken("  ", normalized=False), AddedToken("\u4e16", single_word=True)]
NAMES = ["<a>", "<a><b>", "<l>", "<r>", "word", "Word", "words", "\u00c9t\u00e9", "\u00e9t\u00e9", "e\u0301te\u0301", "<lr>", "\u4e16",
         "<s>", "<0x0A>", "axb", "a\nb", "ABq", "\u2581"]


def build(normalizer, pre_tokenizer, decoder, options, texts, byte):
    tokenizer = Tokenizer(models.BPE(**{k: v for k, v in options.items()}))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder:
        tokenizer.decoder = decoder
    bytes_ = [f"<0x{b:02X}>" for b in range(256)] if options.get("byte_fallback") else []
    kwargs = {k: options[k] for k in ("continuing_subword_prefix", "end_of_word_suffix") if k in options}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=900, show_progress=False, special_tokens=["<unk>", "<s>", *bytes_], max_token_length=24,
        initial_alphabet=byte_level.alphabet() if byte else [], limit_alphabet=300, **kwargs))
    tokenizer.add_tokens(ADDED)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A <a>", special_tokens=[
        ("<s>", tokenizer.token_to_id("<s>")), ("<a>", tokenizer.token_to_id("<a>"))])
    spec = json.loads(tokenizer.to_str())
    # Byte pieces are plain vocabulary, not added tokens, in the files that real models have.
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(spec)


def check(name, driver, path, peer, texts, decode_flags=()):
    lines = [json.dumps(t) for t in texts]
    bad = 0
    for flag, add in (((), True), (("--no-special",), False)):
        ours, theirs = run_driver(driver, "encode", path, lines, *flag), peer.encode(texts, add)
        for text, a, b in zip(texts, ours, theirs):
            if a != b:
                bad += 1
                if bad < 4:
                    print(f"{name}: ids differ", first_difference(text, a, b))
    our_text, their_text = run_driver(driver, "decode", path, [json.dumps(x) for x in ours], *decode_flags), peer.decode(ours)
    for a, b in zip(our_text, their_text):
        if a != b:
            bad += 1
            if bad < 4:
                print(f"{name}: texts differ", repr(a[:100]), repr(b[:100]))
    return bad == 0


def sentencepiece_cases(work, texts):
    import sentencepiece
    text = work / "sentences.txt"
    text.write_text("\n".join(line.replace("\x00", "") for t in texts for line in t.split("\n") if line.strip()))
    variants = itertools.product((True, False), (True, False), (True, False), ([], ["<user>", "ab\u4e16", "  "]))
    for dummy, extra, fallback, symbols in variants:
        name = f"sentencepiece {dummy} {extra} {fallback} {len(symbols)}"
        prefix = work / name.replace(" ", "_")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(prefix), model_type="bpe", vocab_size=1500, character_coverage=0.98,
            byte_fallback=fallback, add_dummy_prefix=dummy, remove_extra_whitespaces=extra, user_defined_symbols=symbols,
            control_symbols=["<ctl>"], normalization_rule_name="identity", minloglevel=2)
        yield name, pathlib.Path(f"{prefix}.model"), dummy, symbols


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True)
    driver = parser.parse_args().driver
    rng = random.Random(5)
    training = list(corpus.english_and_code(rng, 60_000)) + [corpus.chinese(rng) for _ in range(30)] + [
        corpus.combining(rng) for _ in range(30)]
    words = [w for t in training for w in t.split()][:3000]
    texts = list(corpus.documents(9, 60_000, words, NAMES)) + ["".join(rng.choice(
        NAMES + [" ", "  ", "x", "\u00e9", "\n", "_", "\u3000"]) for _ in range(rng.randint(1, 30))) for _ in range(300)]
    failed, count = [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        cases = [(n, build(norm, pre, decoders.ByteLevel(), {"ignore_merges": n == "llama3"}, training, True))
                 for n, norm, pre in byte_level_cases()]
        cases += [(n, build(norm, pre, decoder, options, training, False))
                  for n, norm, pre, decoder, options in text_cases()]
        for name, spec in cases:
            path = work / "tokenizer.json"
            path.write_text(spec)
            count += 1
            if not check(name, driver, path, HfPeer(path), texts):
                failed.append(name)
        for name, path, dummy, symbols in sentencepiece_cases(work, training[:12]):
            count += 1
            if not check(name, driver, path, SentencePiecePeer(path), texts, ("--no-special",)):
                failed.append(name)
            # The conversion: the same ids from `tokenizers`, for text without the names of control pieces.
            subprocess.run([driver, "export", path, work / "export"], check=True)
            converted = HfPeer(work / "export/tokenizer.json")
            plain = [t for t in texts if not any(x in t for x in ("<s>", "</s>", "<unk>", "<ctl>", "<0x", "\u2581"))]
            # User-defined pieces become added tokens, before which `tokenizers` prepends once more: not compared.
            if not symbols:
                ours = run_driver(driver, "encode", path, [json.dumps(t) for t in plain])
                wrong = [(t, a, b) for t, a, b in zip(plain, ours, converted.encode(plain, True)) if a != b]
                if wrong:
                    failed.append(name + " converted")
                    print(name, "converted:", len(wrong), "differ;", first_difference(*wrong[0]))
    print(f"{count} synthetic tokenizers, {len(texts)} texts: {len(failed)} differ {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
