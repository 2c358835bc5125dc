"""Trains a tokenizer with Hearth and checks it against `tokenizers` and `transformers`.

    compare_trainer.py --driver build/tests/data/tokenizer/tokenizer_driver

The merges must be those that the trainer of `tokenizers` learns from the same text; the result must load in transformers
with identical ids; and it must not depend on the number of workers.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import corpus  # noqa: E402
from compare import run_driver  # noqa: E402

VOCAB_SIZE = 2000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def training_texts():
    rng = random.Random(3)
    texts = list(corpus.english_and_code(rng, 700_000)) + [corpus.chinese(rng) for _ in range(300)]
    # Hearth cuts words longer than 256 bytes; `tokenizers` does not, so the comparison leaves lines with such out.
    return ["\n".join(line for line in t.split("\n") if all(len(w.encode()) < 200 for w in line.split())
                      and len(line) - len(line.lstrip()) < 60 and len(line) < 200) for t in texts]


def train(driver, work, name, workers):
    subprocess.run([driver, "train", str(VOCAB_SIZE), str(work / name), str(workers), str(work / "text.jsonl")], check=True,
                   stdout=subprocess.DEVNULL)
    return (work / name / "tokenizer.json").read_bytes()


def peer_merges(spec, texts):
    """What `tokenizers` learns with the same pre-tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    empty = json.loads(json.dumps(spec))
    empty["model"]["vocab"], empty["model"]["merges"], empty["added_tokens"] = {}, [], []
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, min_frequency=2, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert isinstance(tokenizer.model, models.BPE)
    model = json.loads(tokenizer.to_str())["model"]
    return model["merges"], model["vocab"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True)
    driver = parser.parse_args().driver
    texts = training_texts()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        one, three = train(driver, work, "one", 1), train(driver, work, "three", 3)
        assert one == three, "the number of workers changed the tokenizer"
        spec = json.loads(one)
        merges, vocab = peer_merges(spec, texts)
        ours = spec["model"]["merges"]
        differing = [i for i, (a, b) in enumerate(zip(ours, merges)) if a != b]
        assert len(ours) == len(merges) and not differing, (len(ours), len(merges), differing[:3],
                                                           [(ours[i], merges[i]) for i in differing[:3]])
        assert spec["model"]["vocab"] == vocab, "the same merges but other ids"

        import transformers
        loaded = transformers.AutoTokenizer.from_pretrained(work / "one")
        assert (loaded.eos_token, loaded.eos_token_id, len(loaded)) == ("<|endoftext|>", 0, VOCAB_SIZE)
        held_out = list(corpus.documents(11, 500_000, list(vocab), SPECIAL))
        ids = run_driver(driver, "encode", work / "one", [json.dumps(t) for t in held_out])
        wrong = [t for t, x in zip(held_out, ids) if x != loaded(t)["input_ids"]]
        assert not wrong, f"{len(wrong)} texts differ, the first is {wrong[0][:80]!r}"
        back = run_driver(driver, "decode", work / "one", [json.dumps(x) for x in ids])
        assert back == held_out, "decode(encode(x)) is not x"
        chat = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
        assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", repr(chat)
    print(f"{len(merges)} merges equal, {len(held_out)} held-out texts with equal ids, chat template renders")


if __name__ == "__main__":
    main()
