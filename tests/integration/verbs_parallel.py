"""eval, generate, import and export do under any layout of ranks what they do on one, and say what they cannot do.
    verbs_parallel.py [all]      all: every layout with every model, else a few of each"""
import filecmp
import json
import os
import sys

from fixture import Report, Workspace, device, hearth

TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"
LAYOUTS = [
    ("tp2", 2, {TP: 2}), ("tp4", 4, {TP: 4}), ("pp2", 2, {PP: 2}), ("pp4", 4, {PP: 4}), ("tp2_pp2", 4, {TP: 2, PP: 2}),
    ("uneven", 2, {PP: 2, "parallel.pipeline_model_parallel_layout": "[3, 1]"}),
]
# What only a training needs is taken as it stands in the experiment file.
TRAINING = {TP: 2, PP: 2, "parallel.pipeline_schedule": "zbv", "parallel.zero_stage": 3}
EVAL_LAYOUTS = [*LAYOUTS, ("dp2", 2, {}), ("tp2_dp2", 4, {TP: 2}), ("cp2", 2, {"parallel.context_parallel_size": 2}),
                ("as_trained", 4, TRAINING)]
THOROUGH = sys.argv[1:] == ["all"]
FEW = ("tp4", "tp2_pp2", "uneven", "dp2", "as_trained")  # with the first model; with the others one
# Mean loss and single log-probabilities in fp32: sums in another order, relative to numbers of a few nats.
MEAN, TOKEN = 1e-6, 2e-5
DRAWN = ("--temperature", 1, "--seed", 5)
SHAPES = {"llama": {}, "qwen3": {"model__family": "qwen3", "model__qk_norm": True, "model__tie_word_embeddings": False},
          "qwen2": {"model__family": "qwen2", "model__attention_bias": True}}


def chosen(layouts, run):
    few = FEW if run == "llama" else ("tp2_pp2",)
    return [entry for entry in layouts if THOROUGH or entry[0] in few]


def words(layout):
    return [word for key, value in layout.items() for word in ("--set", f"{key}={value}")]


def read_lines(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def same_lines(got, want):
    """Largest difference of a log-probability, or None where documents or missing values differ."""
    worst = 0.0
    if [line["ids"] for line in got] != [line["ids"] for line in want]:
        return None
    for a, b in zip(got, want):
        for x, y in zip(a["logprobs"], b["logprobs"]):
            if (x is None) != (y is None):
                return None
            worst = max(worst, abs(x - y) if x is not None else 0.0)
    return worst


def check_eval(report, workspace, run, on):
    def evaluate(name, ranks, layout):
        done = hearth(["eval", f"runs/{run}", "--data", "shards/train", "--per-token", f"{run}.{name}.jsonl", "--json", *on,
                       *words(layout)], workspace.folder, ranks=ranks)
        return json.loads(done.stdout), read_lines(workspace.path(f"{run}.{name}.jsonl"))

    want, want_lines = evaluate("one", 0, {})
    texts = [json.loads(hearth(["eval", f"runs/{run}", "--text", "docs.jsonl", "--json", *on], workspace.folder, ranks=ranks).stdout)
             for ranks in (0, 4)]
    difference = abs(texts[1]["loss"] - texts[0]["loss"]) / texts[0]["loss"]
    report.check(f"{run} eval of a text on all ranks", difference <= MEAN and texts[0]["num_tokens"] == texts[1]["num_tokens"],
                 f"{difference:.1e}")
    for name, ranks, layout in chosen(EVAL_LAYOUTS, run):
        got, lines = evaluate(name, ranks, layout)
        difference = abs(got["loss"] - want["loss"]) / want["loss"]
        worst = same_lines(lines, want_lines)
        report.check(f"{run} eval {name}: mean loss", difference <= MEAN, f"{difference:.1e}")
        report.check(f"{run} eval {name}: counts", all(got[k] == want[k] for k in ("num_tokens", "num_documents", "unigram_loss")))
        report.check(f"{run} eval {name}: each token, in order", worst is not None and worst <= TOKEN, f"{worst}")


def check_generate(report, workspace, run, on):
    def generate(ranks, layout, *more):
        done = hearth(["generate", f"runs/{run}", "--prompt", "kalo mi", "--max-new-tokens", 24, "--json", *on, *more,
                       *words(layout)], workspace.folder, ranks=ranks)
        return json.loads(done.stdout)["ids"]

    greedy, drawn = generate(0, {}, "--temperature", 0), generate(0, {}, *DRAWN)
    report.check(f"{run} generate: draws differ from greedy", greedy != drawn)
    for name, ranks, layout in [*chosen(LAYOUTS, run), ("all ranks", 8, {})]:
        report.check(f"{run} generate {name}: drawn", generate(ranks, layout, *DRAWN) == drawn)
        if THOROUGH:
            report.check(f"{run} generate {name}: greedy", generate(ranks, layout, "--temperature", 0) == greedy)


def same_files(a, b):
    names = sorted(os.listdir(a))
    return names == sorted(os.listdir(b)) and filecmp.cmpfiles(a, b, names, shallow=False)[0] == names


def check_transfer(report, workspace, run):
    """Export on several ranks publishes the files of one rank, byte for byte; what it published imports on several, too."""
    def published(name, ranks, layout):
        done = hearth(["export", f"runs/{run}", "--output", f"{run}.{name}", *words(layout)], workspace.folder, ranks=ranks)
        report.check(f"{run} export {name}: logits were compared", "too large" not in done.stderr)
        return workspace.path(f"{run}.{name}")

    want = published("one", 0, {})
    for name, ranks, layout in [("all_ranks", 4, {}), ("eight_ranks", 8, {}), ("pipeline", 2, {PP: 2}), ("as_trained", 4, TRAINING)]:
        report.check(f"{run} export {name}: the same files", same_files(published(name, ranks, layout), want))
    hearth(["import", f"{run}.one", "--output", f"{run}.ckpt"], workspace.folder, ranks=4)
    hearth(["export", f"{run}.ckpt", "--output", f"{run}.again"], workspace.folder)
    report.check(f"{run} import on 4 ranks: the same weights",
                 filecmp.cmp(workspace.path(f"{run}.again", "model.safetensors"), os.path.join(want, "model.safetensors"), False))


def main():
    report = Report()
    on = ["--device", device()]
    with Workspace() as workspace:
        for run, changes in SHAPES.items():
            # Trained under a layout, with samples from it, so that the checkpoint itself was written in parts.
            workspace.write_config(model__num_hidden_layers=4, training__train_iters=20, training__eval_interval=10,
                                   **changes)
            workspace.train(run, 4, sets=[f"{key}={value}" for key, value in TRAINING.items()])
            with open(workspace.path("runs", run, "samples.jsonl"), encoding="utf-8") as samples:
                report.check(f"{run}: samples while training under a layout", len(samples.readlines()) == 2)
            check_eval(report, workspace, run, on)
            check_generate(report, workspace, run, on)
            if THOROUGH or run == "llama":
                check_transfer(report, workspace, run)

        def refused(name, arguments, ranks, text):
            done = hearth(arguments, workspace.folder, ranks=ranks, check=False)
            report.check(name, done.returncode in (2, 3) and text in done.stderr, f"code {done.returncode} {done.stderr[-300:]}")

        refused("two copies cannot generate one text",
                ["generate", "runs/llama", "--prompt", "a", *on, "--set", f"{TP}=1"], 2, "one copy of the model")
        refused("heads that do not divide", ["eval", "runs/llama", "--data", "shards/train", *on, "--set", f"{TP}=3"], 3, "3")
        refused("export, heads that do not divide", ["export", "runs/llama", "--output", "never", "--set", f"{TP}=3"], 3, "3")
        report.check("a refused export leaves nothing", not [n for n in os.listdir(workspace.folder) if n.startswith("never")])
    report.finish()


if __name__ == "__main__":
    main()
