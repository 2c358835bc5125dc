#!/usr/bin/env python3
"""check_export.py PAIRS: each line of standard input names two HF directories; transformers must load the second and
compute what it computes for the first: equal configuration where it matters, bit-equal logits, equal greedy tokens.
Ends with status 1 and says what differs."""
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402

TEXT = "Makes small models: def f(x): return x**2\n"


def load(folder, dtype="auto"):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, f"{folder}: {problems}"
    return model.eval()


def check(source, export, rounding):
    ours = load(export)
    # Rounded while loading: model.to() would round the rotary buffers too.
    theirs = load(source, ours.dtype if rounding else "auto")
    assert theirs.dtype == ours.dtype, (theirs.dtype, ours.dtype)
    ids = torch.randint(0, theirs.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        a, b = theirs(input_ids=ids).logits, ours(input_ids=ids).logits
    assert torch.isfinite(a).all() and torch.equal(a, b), f"logits differ by {(a - b).abs().max()}"
    theirs.config.rope_parameters.pop("type", None)  # the old name of rope_type, in old files beside it
    for key in ("vocab_size", "tie_word_embeddings", "eos_token_id", "bos_token_id", "rope_parameters"):
        assert getattr(theirs.config, key) == getattr(ours.config, key), (
            key, getattr(theirs.config, key), getattr(ours.config, key))
    assert GenerationConfig.from_pretrained(export).eos_token_id == theirs.generation_config.eos_token_id
    greedy = [m.generate(ids[:1, :6], attention_mask=torch.ones_like(ids[:1, :6]), max_new_tokens=8, do_sample=False)
              for m in (theirs, ours)]
    assert torch.equal(*greedy)
    if os.path.exists(os.path.join(source, "tokenizer.json")):
        old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(export)
        assert old(TEXT).input_ids == new(TEXT).input_ids
        assert old.eos_token_id == new.eos_token_id and old.chat_template == new.chat_template


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for line in sys.stdin:
        source, export, *rounding = line.split()
        try:
            check(source, export, bool(rounding))
        except Exception as error:
            print(f"{export}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
