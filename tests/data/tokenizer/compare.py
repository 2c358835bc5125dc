"""Compares the ids and the decoded text of Hearth's tokenizer with those of `tokenizers` and `sentencepiece`.

    compare.py --driver build/tests/data/tokenizer/tokenizer_driver --artefacts DIR [--megabytes 3] [--only NAME]

DIR is what tests/fetch_artefacts.sh fills; tokenizers that are not there are left out with a message. Exit code 77 (skipped)
when none is there.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import corpus  # noqa: E402

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def run_driver(driver, verb, path, lines, *flags):
    result = subprocess.run([driver, verb, str(path), *flags], input="".join(x + "\n" for x in lines).encode(),
                            stdout=subprocess.PIPE, check=True)
    return [json.loads(x) for x in result.stdout.decode().split("\n")[:-1]]


class HfPeer:
    def __init__(self, path):
        import tokenizers
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        vocab = self.tokenizer.get_vocab(with_added_tokens=False)
        self.words = [self.tokenizer.decode([i]) for i in list(vocab.values())[::5]]
        self.special_names = [t.content for t in self.tokenizer.get_added_tokens_decoder().values()][:40] or ["<s>"]

    def encode(self, texts, add_special):
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special)]

    def decode(self, ids):
        return self.tokenizer.decode_batch(ids, skip_special_tokens=False)


class SentencePiecePeer:
    def __init__(self, path):
        import sentencepiece
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.words = [self.processor.id_to_piece(i) for i in range(0, self.processor.get_piece_size(), 5)]
        self.special_names = ["<s>", "</s>", "<unk>", "<0x0A>", "\u2581"]

    def encode(self, texts, add_special):
        return [self.processor.encode(t) for t in texts]

    def decode(self, ids):
        return [self.processor.decode(x) for x in ids]


def first_difference(text, ours, theirs):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"{text[:80]!r}: at {at}: ours {ours[max(0, at - 2):at + 4]}, theirs {theirs[max(0, at - 2):at + 4]}"


def compare(name, driver, path, peer, megabytes, seed, decode_flags):
    texts = list(corpus.documents(seed, int(megabytes * 1e6), peer.words, peer.special_names))
    size = sum(len(t.encode()) for t in texts)
    lines = [json.dumps(t) for t in texts]
    start = time.time()
    ours = run_driver(driver, "encode", path, lines)
    our_seconds = time.time() - start
    start = time.time()
    theirs = peer.encode(texts, True)
    their_seconds = time.time() - start
    wrong = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    for i in wrong[:5]:
        print("  ids differ", first_difference(texts[i], ours[i], theirs[i]))
    plain = run_driver(driver, "encode", path, lines[:500], "--no-special")
    wrong_plain = sum(a != b for a, b in zip(plain, peer.encode(texts[:500], False)))
    our_text = run_driver(driver, "decode", path, [json.dumps(x) for x in ours], *decode_flags)
    their_text = peer.decode(ours)
    wrong_text = [i for i in range(len(texts)) if our_text[i] != their_text[i]]
    for i in wrong_text[:5]:
        print("  texts differ", repr(our_text[i][:120]), repr(their_text[i][:120]))
    print(f"{name}: {len(texts)} texts, {size / 1e6:.1f} MB, {sum(map(len, ours))} ids: {len(wrong)} encoded, "
          f"{wrong_plain} without specials, {len(wrong_text)} decoded differently "
          f"({our_seconds:.1f} s with start-up, JSON and one thread; peer {their_seconds:.1f} s)", flush=True)
    return not wrong and not wrong_plain and not wrong_text


def gpt2_json(artefacts, work):
    """The package has the two older files; `tokenizers` writes them as one."""
    from tokenizers import ByteLevelBPETokenizer
    source = artefacts / "gpt2-tokenizer"
    path = work / "gpt2.json"
    ByteLevelBPETokenizer(str(source / "encoder.json"), str(source / "vocab.bpe")).save(str(path))
    return path


def smollm2_json(artefacts, work):
    """As the original: digits one by one, then ByteLevel (the GGUF only names it `smollm`)."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    reader = gguf.GGUFReader(str(next((artefacts / "smollm2").glob("*.gguf"))))
    field = lambda key: reader.get_field("tokenizer.ggml." + key).contents()
    tokens, types = field("tokens"), field("token_type")
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in field("merges")])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == 3])
    path = work / "smollm2.json"
    tokenizer.save(str(path))
    return path


def cases(artefacts, work):
    """(name, path for Hearth, peer, decode flags); skips what is missing."""
    makers = {
        "gpt2-tokenizer": [("gpt-2", lambda: gpt2_json(artefacts, work), HfPeer)],
        "llama3-tokenizer": [("llama-3", lambda: artefacts / "llama3-tokenizer/tokenizer.json", HfPeer)],
        "qwen-tokenizer": [("qwen2.5", lambda: artefacts / "qwen-tokenizer/tokenizer.json", HfPeer)],
        "smollm2": [("smollm2", lambda: smollm2_json(artefacts, work), HfPeer)],
        "mistral-tokenizer": [
            ("mistral-v1", lambda: artefacts / "mistral-tokenizer/tokenizer.model.v1", SentencePiecePeer),
            ("mistral-v3", lambda: artefacts / "mistral-tokenizer/mistral_instruct_tokenizer_240323.model.v3",
             SentencePiecePeer)],
        "llama2-tokenizer": [("llama-2", lambda: artefacts / "llama2-tokenizer/tokenizer.model", SentencePiecePeer)],
    }
    for folder, entries in makers.items():
        if not (artefacts / folder).exists():
            print(f"{folder}: not in {artefacts}, left out (tests/fetch_artefacts.sh {folder})")
            continue
        for name, path, peer in entries:
            file = path()
            yield name, file, peer(file), ["--no-special"] if peer is SentencePiecePeer else []


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--artefacts", type=pathlib.Path, required=True)
    parser.add_argument("--megabytes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only")
    args = parser.parse_args()
    good, seen = True, 0
    with tempfile.TemporaryDirectory() as work:
        for name, path, peer, flags in cases(args.artefacts, pathlib.Path(work)):
            if args.only in (None, name):
                seen += 1
                good = compare(name, args.driver, path, peer, args.megabytes, args.seed, flags) and good
    if seen == 0:
        sys.exit(77)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
