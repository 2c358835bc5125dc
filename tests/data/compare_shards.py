"""Shards as h5py and the `tokenizers` library see them: compare_shards.py PREPARE_DRIVER.

Trains a small byte-level BPE tokenizer, prepares a corpus with the driver, and checks every document, the layout of the
files, and what dataset.json says about them, with nothing of Hearth's own reading code.
"""
import collections
import gzip
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import h5py
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ALPHABETS = ["abcdefghij klmnop qrst uvwxyz", "ABC DEF 0123456789 .,;:!?", "\u4e00\u4e8c\u4e09\u56db\u4e94 \u516d",
             "\u00e9\u00e8\u0301 \u00df\u0416", "\U0001f600\U0001f680 \t\n\n  "]


def make_texts(count):
    draw = random.Random(17)
    return ["".join(draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(1, 900))) + f"#{i}" for i in range(count)]


def make_tokenizer(folder, texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts[:100], trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return tokenizer


def read_shard(folder, info, manifest):
    """Documents of one shard as lists of ids; checks the file against the format."""
    path = folder / info["file"]
    with h5py.File(path, "r") as file:
        assert set(file) == {"tokens", "documents", "block_digest"} and set(file["documents"]) == {"offset"}, set(file)
        tokens, offsets = file["tokens"], file["documents/offset"]
        assert tokens.dtype == np.dtype("<u2") and offsets.dtype == np.dtype("<u8")
        for dataset in (tokens, offsets, file["block_digest"]):
            assert dataset.chunks is None and dataset.compression is None and dataset.ndim == 1 and not dataset.external
        assert file["block_digest"].shape == (-(-tokens.size * 2 // 65536),)
        assert file.attrs["format_version"] == 1 and file.attrs["vocab_size"] == manifest["vocab_size"]
        assert file.attrs["eos_id"] == manifest["eos_id"]
        assert file.attrs["tokenizer_digest"].decode() == manifest["tokenizer_digest"]
        assert (tokens.size, offsets.size - 1) == (info["num_tokens"], info["num_documents"])
        # The hot path reads at this offset without HDF5; both must be the same bytes.
        assert info["tokens"] == {"offset": tokens.id.get_offset(), "size_bytes": tokens.size * 2}
        assert info["documents"] == {"offset": offsets.id.get_offset(), "size_bytes": offsets.size * 8}
        raw = np.frombuffer(path.read_bytes(), "<u2", tokens.size, info["tokens"]["offset"])
        assert np.array_equal(raw, tokens[:])
        bounds = offsets[:].tolist()
        assert bounds[0] == 0 and bounds[-1] == tokens.size and path.stat().st_size == info["size_bytes"]
        return [raw[a:b].tolist() for a, b in zip(bounds, bounds[1:])]


def read_dataset(folder):
    manifest = json.loads((folder / "dataset.json").read_text())
    documents = [document for info in manifest["shards"] for document in read_shard(folder, info, manifest)]
    assert len(documents) == manifest["num_documents"] and sum(map(len, documents)) == manifest["num_tokens"]
    return documents


def main(driver):
    texts = make_texts(1500)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer = make_tokenizer(folder / "tok", texts)
        lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts)]
        (folder / "in").mkdir()
        (folder / "in/a.jsonl").write_text("".join(lines[:800]), encoding="utf-8")
        with gzip.open(folder / "in/b.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(lines[800:1490]))
        for i in range(1490, 1500):
            (folder / f"in/{i}.txt").write_text(texts[i], encoding="utf-8")
        subprocess.run([driver, folder / "tok", folder / "out", folder / "in"], check=True)
        train, validation = read_dataset(folder / "out/train"), read_dataset(folder / "out/validation")
        eos = tokenizer.token_to_id("<|endoftext|>")
        want = collections.Counter(tuple(tokenizer.encode(text).ids + [eos]) for text in texts)
        got = collections.Counter(map(tuple, train + validation))
        assert want == got, f"{sum((want - got).values())} documents missing, {sum((got - want).values())} unexpected"
        # binomial(1500, 0.2): mean 300, standard deviation 15.5; five of them
        assert abs(len(validation) - 300) <= 78, len(validation)
        assert Tokenizer.from_file(str(folder / "out/train/tokenizer/tokenizer.json")).get_vocab() == tokenizer.get_vocab()
        print(f"{len(train)} + {len(validation)} documents, {sum(map(len, train + validation))} tokens equal to tokenizers and h5py")


if __name__ == "__main__":
    main(sys.argv[1])
