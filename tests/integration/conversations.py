"""Conversations through the whole program: prepare with a template from a file, inspect, verify, train, evaluate what
is learnt, and generate with the template that travelled with the dataset and the checkpoint."""
import json
import math
import os
import shutil

import h5py
from tokenizers import Tokenizer

from fixture import Report, Workspace, hearth

TEMPLATE = ("{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '<|endoftext|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}{% if shout %}!{% endif %}")
LENGTH = 64
# fp32 log-probabilities are printed with 9 digits; their sum over some thousand tokens differs by rounding alone.
LOSS_TOLERANCE = 1e-5


def write_conversations(workspace):
    with open(workspace.path("docs.jsonl"), encoding="utf-8") as lines:
        texts = [json.loads(line)["text"].split() for line in lines][:120]
    records = [{"instruction": " ".join(words[:6]), "input": "", "output": " ".join(words[6:12 + i % 7])}
               for i, words in enumerate(texts)]
    with open(workspace.path("conversations.json"), "w", encoding="utf-8") as out:
        json.dump(records, out, ensure_ascii=False, indent=1)
    with open(workspace.path("chat.jinja"), "w", encoding="utf-8") as out:
        out.write(TEMPLATE)


def prepare(workspace, output, *more, check=True):
    return hearth(["data", "prepare", "conversations.json", "--tokenizer", "tokenizer", "--output", output, "--format",
                   "alpaca", "--chat-template", "chat.jinja", *more], workspace.folder, check=check)


def masks_of(workspace, dataset):
    with h5py.File(workspace.path(dataset, "shard-00000.h5"), "r") as file:
        offset = file["documents/offset"][:].tolist()
        mask, tokens = file["loss_mask"][:].tolist(), file["tokens"][:].tolist()
    return [(tokens[a:b], mask[a:b]) for a, b in zip(offset, offset[1:])]


def check_prepare(report, workspace):
    out = prepare(workspace, "chat", "--pack-length", LENGTH).stdout
    report.check("prepare says how full the windows are", "% of them filled" in out and "are learnt" in out, out.strip())
    hearth(["data", "verify", "chat"], workspace.folder)
    info = json.loads(hearth(["data", "inspect", "chat", "--json"], workspace.folder).stdout)
    documents = masks_of(workspace, "chat")
    trained = sum(sum(mask) for _, mask in documents)
    report.check("inspect", info["kind"] == "sft" and info["pack_length"] == LENGTH and info["trained_tokens"] == trained
                 and info["record_format"] == "alpaca" and info["documents"] == len(documents) == 120,
                 f"{info['filled_share']:.3f} filled, {info['trained_share']:.3f} learnt")
    parts = info["sample"]["parts"]
    report.check("the sample shows what is learnt", [p["learnt"] for p in parts][:2] == [False, True]
                 and parts[0]["text"].startswith("[user] ") and parts[1]["text"].endswith("<|endoftext|>"), parts)
    shown = hearth(["data", "inspect", "chat"], workspace.folder).stdout
    report.check("inspect is readable", "    learnt  " in shown and "    given   " in shown and "windows of 64" in shown)
    for name, arguments, words in (
            ("a format needs a pack length", (), "--no-packing"),
            ("other settings are refused", ("--pack-length", LENGTH, "--last-turn-only"), "last_turn"),
            ("packing or not", ("--pack-length", LENGTH, "--no-packing"), "excludes")):
        done = prepare(workspace, "chat", *arguments, check=False)
        report.check(name, done.returncode == 2 and words in done.stderr, done.stderr.strip()[-200:])


def check_training(report, workspace):
    workspace.write_config(data__train=[{"path": "chat"}], data__validation=[{"path": "chat"}], training__train_iters=4)
    workspace.train("chat")
    report.check("trains", all(math.isfinite(loss) for loss in workspace.losses("chat", 4)))
    done = workspace.train("wrong", sets=["data.seq_length=96"], check=False)
    report.check("a window that cuts bins is refused", done.returncode == 3 and "bins of 64 tokens" in done.stderr,
                 done.stderr.strip()[-300:])
    workspace.train("twice", sets=["data.seq_length=128", "training.train_iters=1"])


def check_evaluation(report, workspace):
    out = json.loads(hearth(["eval", "runs/chat", "--data", "chat", "--per-token", "scores.jsonl", "--json"],
                            workspace.folder).stdout)
    with open(workspace.path("scores.jsonl"), encoding="utf-8") as lines:
        scores = [json.loads(line) for line in lines]
    counted = []
    for (tokens, mask), score in zip(masks_of(workspace, "chat"), scores, strict=True):
        if score["ids"] != tokens[:len(score["ids"])] or any(mask[len(score["ids"]):]):
            report.check("documents are scored up to their last token that counts", False, score["ids"])
        counted += [p for p, m in zip(score["logprobs"], mask) if m and p is not None]
    loss = -math.fsum(counted) / len(counted)
    report.check("eval counts what is learnt", out["num_tokens"] == len(counted) and abs(out["loss"] - loss) <= LOSS_TOLERANCE,
                 f"{out['loss']:.6f} and {loss:.6f} over {len(counted)} tokens")


def check_generation(report, workspace):
    tokenizer = Tokenizer.from_file(workspace.path("tokenizer", "tokenizer.json"))
    for name, arguments, text in (
            ("plain", (), "[user] kalo mi<|endoftext|>[assistant]"),
            ("system", ("--system", "be"), "[system] be<|endoftext|>[user] kalo mi<|endoftext|>[assistant]"),
            ("variable", ("--template-variable", "shout=true"), "[user] kalo mi<|endoftext|>[assistant]!")):
        out = json.loads(hearth(["generate", "runs/chat", "--chat", "--prompt", "kalo mi", "--max-new-tokens", 2, "--json",
                                 *arguments], workspace.folder).stdout)
        report.check(f"generate --chat, {name}", out["prompt_ids"] == tokenizer.encode(text, add_special_tokens=False).ids,
                     tokenizer.decode(out["prompt_ids"], skip_special_tokens=False))


def main():
    report = Report()
    with Workspace() as workspace:
        write_conversations(workspace)
        check_prepare(report, workspace)
        check_training(report, workspace)
        check_evaluation(report, workspace)
        check_generation(report, workspace)
        # A model whose tokenizer has no template says so.
        os.makedirs(workspace.path("bare"))
        shutil.copy(workspace.path("tokenizer", "tokenizer.json"), workspace.path("bare"))
        hearth(["data", "prepare", "docs.jsonl", "--tokenizer", "bare", "--output", "text"], workspace.folder)
        workspace.train("text", sets=["data.train=[{path: text}]", "data.validation=[]", "training.train_iters=1"])
        done = hearth(["generate", "runs/text", "--chat", "--prompt", "x"], workspace.folder, check=False)
        report.check("no template, no chat", done.returncode == 4 and "no chat template" in done.stderr,
                     f"code {done.returncode} {done.stderr[-300:]}")
    report.finish()


if __name__ == "__main__":
    main()
