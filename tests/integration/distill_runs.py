"""Whole distillations of 20 steps from one seed, side by side: the teacher on the students' ranks, on ranks of its own (sending
its whole distribution), and asked once, offline; each again under another layout and micro-batch, one of them stopped and gone
on with other teacher ranks. One student comes out. And how such jobs fail: once, with the code of the table."""
import json
import os
import sys

import transformers

from fixture import VOCAB_SIZE, Report, Workspace, device, hearth, max_or_nan, write_corpus
from objectives import Conversations, copy_tokenizer, make_model

STEPS = 20
# Correct layouts of one fp32 run differ by 3e-7 relative after 20 steps; a cache rounds what it keeps to fp32 once more.
TOLERANCE = 2e-6
CACHE = ["objective.teacher=null", "objective.teacher_cache=cache"]
TP, PP = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"


def teacher_ranks(count, **layout):
    return [f"objective.teacher_ranks={count}", f"objective.teacher_top_k={VOCAB_SIZE}"] + [
        f"objective.teacher_parallel.{axis}_model_parallel_size={size}" for axis, size in layout.items()]


# name: ranks, overrides
RUNS = {
    "co-located": (1, []),
    "co-located, tp 2, micro-batch 4": (2, [TP, "training.micro_batch_size=4"]),
    "1 + 1 ranks": (2, teacher_ranks(1)),
    "dp 2 + 1, micro-batch 1": (3, [*teacher_ranks(1), "training.micro_batch_size=1"]),
    "pp 2 + tp 2": (4, [*teacher_ranks(2, tensor=2), PP]),
    "cache": (1, CACHE),
    "cache, pp 2, micro-batch 1": (2, [*CACHE, PP, "training.micro_batch_size=1"]),
    "cache, dp 2, zero 3, micro-batch 4": (2, [*CACHE, "parallel.zero_stage=3", "training.micro_batch_size=4"]),
}


class Shards(Conversations):
    """Conversations packed whole: the offline teacher reads documents, the online one windows, and here they are one."""

    def __init__(self, workspace):
        self.workspace = workspace


def lines_of(workspace, run):
    with open(workspace.path("runs", run, "metrics.jsonl"), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def curve(workspace, run):
    """Loss, cross-entropy and divergence of every step, then of every validation."""
    steps = {line["step"]: [line[key] for key in ("lm loss", "ce loss", "kd loss")]
             for line in lines_of(workspace, run) if "lm loss" in line}
    held_out = {line["step"]: [line[f"validation {key}"] for key in ("loss", "ce loss", "kd loss")]
                for line in lines_of(workspace, run) if "validation loss" in line}
    if sorted(steps) != list(range(1, STEPS + 1)) or sorted(held_out) != [10, 20]:
        sys.exit(f"FAILED: {run} has steps {sorted(steps)} and validations {sorted(held_out)}")
    return [steps[step] for step in sorted(steps)] + [held_out[step] for step in sorted(held_out)]


def compare(report, name, got, want):
    # Relative to the whole loss, of which the divergence is a small part.
    worst = max_or_nan([abs(g - w) / ws[0] for gs, ws in zip(got, want) for g, w in zip(gs, ws)])
    report.check(f"{name}: every loss of {STEPS} steps and two validations", worst <= TOLERANCE, f"{worst:.1e} (<= {TOLERANCE:.0e})")


def same_student(report, workspace):
    curves = {}
    for name, (ranks, sets) in RUNS.items():
        run = name.replace(", ", "_").replace(" ", "")
        workspace.train(run, ranks, sets=sets)
        curves[name] = curve(workspace, run)
    # Stopped by a signal after step 8; goes on with two teachers instead of one, on other students.
    stopped = workspace.train("stopped", 2, sets=teacher_ranks(1), check=False,
                              env={"HEARTH_FAULT": "term@rank=0,step=8,point=step.end"})
    reached = max((line["step"] for line in lines_of(workspace, "stopped")), default=0)
    report.check("a stop reaches the teacher: code 75", stopped.returncode == 75 and reached < STEPS,
                 f"code {stopped.returncode} after step {reached}")
    workspace.train("stopped", 4, sets=teacher_ranks(2, pipeline=2))
    curves["1 + 1, then dp 2 + pp 2"] = curve(workspace, "stopped")
    shown = [0, 1, 9, 18, 19]
    print(f"{'loss at step':40}" + "".join(f"{step + 1:>13}" for step in shown) + "   validation kd", flush=True)
    for name, losses in curves.items():
        print(f"{name:40}" + "".join(f"{losses[step][0]:13.8f}" for step in shown) + f"{losses[-1][2]:16.8f}", flush=True)
    for name, losses in curves.items():
        compare(report, name, losses, curves["co-located"])
    first = curves["co-located"]
    report.check("the student moves", first[-1][2] <= 0.9 * first[-2][2] or first[STEPS - 1][2] <= 0.9 * first[0][2],
                 f"divergence {first[0][2]:.4f} -> {first[STEPS - 1][2]:.4f}")


def names_both_meshes(report, workspace):
    done = workspace.train("short", 4, sets=[*teacher_ranks(2, tensor=2), "training.train_iters=1"])
    want = "pp 1 x dp 2 x cp 1 x ep 1 x tp 1 = 2 ranks; teacher pp 1 x dp 1 x cp 1 x ep 1 x tp 2 = 2 ranks"
    report.check("the log of the start names both meshes", want in done.stderr)
    with open(workspace.path("runs", "short", "log", "rank_0003.log"), encoding="utf-8") as log:
        text = log.read()
    report.check("a teacher's rank says what it did", "event=teacher_end answers=" in text)
    dry = hearth(["train", "config.yaml", "--dry-run", *[word for item in teacher_ranks(2, tensor=2) for word in ("--set", item)]],
                 workspace.folder, ranks=4)
    report.check("--dry-run counts both", want in dry.stdout)
    plan = hearth(["plan", "config.yaml", "--ranks", 4, "--json",
                   *[word for item in teacher_ranks(2, tensor=2) for word in ("--set", item)]], workspace.folder)
    layout = json.loads(plan.stdout)["layout"]
    report.check("plan counts both", (layout["ranks"], layout["teacher"]["ranks"], layout["teacher"]["tp"]) == (2, 2, 2), layout)


def fails_once(report, workspace):
    write_corpus(workspace.path("other.jsonl"), 100, seed=99)
    hearth(["data", "train-tokenizer", "other.jsonl", "--vocab-size", VOCAB_SIZE, "--output", "other"], workspace.folder)
    make_model(workspace.path("stranger"), 4)
    for name in os.listdir(workspace.path("other")):
        os.link(workspace.path("other", name), workspace.path("stranger", name))
    cases = {
        "all students fail": (3, teacher_ranks(1), "nan@point=fwd,every=1", 6, "the loss or the gradient was not finite"),
        "the teacher does not fit": (4, teacher_ranks(3, tensor=3), "", 3, "is not a multiple of"),
        "other tokens": (2, [*teacher_ranks(1), "objective.teacher=stranger"], "", 4, "has another tokenizer than"),
        "no rank to train": (2, teacher_ranks(2), "", 3, "none is left to train"),
        "one student fails": (3, teacher_ranks(1), "throw@rank=1,step=3,point=data.next", 70, "rank=1"),
    }
    for name, (ranks, sets, fault, code, says) in cases.items():
        done = workspace.train(name.replace(" ", "_"), ranks, sets=sets, check=False, env={"HEARTH_FAULT": fault})
        count = sum(line.startswith("error: ") for line in done.stderr.splitlines())
        report.check(f"{name}: one error, code {code}", done.returncode == code and count == 1 and says in done.stderr,
                     f"code {done.returncode}, {count} errors" + ("" if count == 1 else "\n" + done.stderr[-2000:]))


def main():
    transformers.utils.logging.disable_progress_bar()
    report = Report()
    with Workspace() as workspace:
        # Other depth, width and padding of the vocabulary than the student's.
        make_model(workspace.path("teacher"), 4, vocab_size=VOCAB_SIZE + 96, num_hidden_layers=3, hidden_size=96,
                   tie_word_embeddings=False)
        copy_tokenizer(workspace, workspace.path("teacher"))
        data = Shards(workspace).prepare_shards("messages")
        hearth(["distill", "cache", "teacher", "--data", "talk", "--output", "cache", "--top-k", VOCAB_SIZE, "--temperature", 2,
                "--dtype", "fp32", "--device", device(), "--set", PP], workspace.folder, ranks=2)
        workspace.write_config(**data, data__validation=data["data__train"], training__train_iters=STEPS, training__eval_interval=10,
                               training__eval_iters=2, objective__kind="distill", objective__teacher="teacher",
                               objective__kd_alpha=0.7, objective__logit_kl_temperature=2.0, checkpoint__save_interval=0)
        names_both_meshes(report, workspace)
        same_student(report, workspace)
        fails_once(report, workspace)
    report.finish()


if __name__ == "__main__":
    main()
