"""Incremental fine-tuning: a model of corpus A learns corpus B with and without replay of A. What it forgets of A is reported
beside what it learns of B at every evaluation, equals what `hearth eval` finds, survives a resume, and a checkpoint that
forgot more than its bound is not exported."""
import json
import os

from fixture import Report, Workspace, hearth, write_corpus

STEPS, BOUND = 120, 0.25
OBJECTIVE = {"objective__incremental": {"old_validation": [{"path": "shards/validation"}], "max_forgetting": BOUND}}


def validations(workspace, run):
    with open(workspace.path("runs", run, "metrics.jsonl"), encoding="utf-8") as lines:
        return [entry for entry in map(json.loads, lines) if "validation loss" in entry]


def eval_loss(workspace, model, data):
    done = hearth(["eval", model, "--data", data, "--json", "--device", "cpu"], workspace.folder)
    return json.loads(done.stdout)["loss"]


def export(workspace, run, *flags):
    return hearth(["export", f"runs/{run}", "--output", f"out-{run}{len(flags)}", *flags], workspace.folder, check=False)


def main():
    report = Report()
    with Workspace() as workspace:
        write_corpus(workspace.path("new.jsonl"), num_documents=300, seed=77)  # another language over the same syllables
        hearth(["data", "prepare", "new.jsonl", "--tokenizer", "tokenizer", "--output", "new", "--validation-fraction", "0.05",
                "--seed", "8"], workspace.folder)
        workspace.write_config(training__train_iters=200, training__eval_interval=0, data__validation=[])
        workspace.train("a", 2)
        common = {"model__init_from": "runs/a", "data__train": [{"path": "new/train"}], "data__validation": [{"path": "new/validation"}],
                  "training__train_iters": STEPS, "training__eval_interval": 40, "training__eval_iters": 1000,
                  "checkpoint__save_interval": 40}
        without = OBJECTIVE["objective__incremental"]
        replay = {**without, "replay": [{"path": "shards/train"}], "replay_share": 0.4}
        workspace.write_config("without.yaml", **common, objective__incremental=without)
        workspace.write_config("replay.yaml", **common, objective__incremental=replay)
        workspace.train("without", 2, "without.yaml")
        # With replay: stopped after 50 steps and gone on.
        workspace.train("replay", 2, "replay.yaml", sets=["training.train_iters=50"])
        workspace.train("replay", 2, "replay.yaml")

        before = eval_loss(workspace, "runs/a", "shards/validation")
        ends = {}
        for run in ("without", "replay"):
            lines = validations(workspace, run)
            ends[run] = lines[-1]
            report.check(f"{run}: old and new loss stand side by side at every evaluation",
                         {line["step"] for line in lines} >= {40, 80, 120} and all("validation old loss" in line for line in lines),
                         [(line["step"], round(line["validation loss"], 3), round(line["validation old loss"], 3)) for line in lines])
            measured = eval_loss(workspace, f"runs/{run}", "shards/validation")
            # eval scores whole documents, the run windows of 64 tokens: the rise, not the loss, is one number.
            rise = lines[-1]["validation forgetting"]
            report.check(f"{run}: forgetting agrees with hearth eval", abs(rise - (measured - before)) <= 0.25 * max(0.1, rise),
                         f"{rise:.3f} in the run, {before:.3f} -> {measured:.3f} by eval")
            report.check(f"{run}: learns the new", lines[-1]["validation loss"] <= lines[0]["validation loss"] - 0.02,
                         f"{lines[0]['validation loss']:.3f} -> {lines[-1]['validation loss']:.3f}")
        forgotten = {run: end["validation forgetting"] for run, end in ends.items()}
        report.check("without replay the model forgets", forgotten["without"] > BOUND, f"{forgotten['without']:.3f} nats")
        report.check("replay bounds it", forgotten["replay"] <= BOUND and forgotten["replay"] <= 0.6 * forgotten["without"],
                     f"{forgotten['replay']:.3f} nats")
        refused = export(workspace, "without")
        report.check("export refuses what forgot too much", refused.returncode == 6 and "max_forgetting" in refused.stderr
                     and not os.path.exists(workspace.path("out-without0")), refused.stderr.strip().splitlines()[-1][:160] if refused.stderr else "")
        report.check("--allow-forgetting publishes it", export(workspace, "without", "--allow-forgetting").returncode == 0)
        report.check("what kept within the bound is published", export(workspace, "replay").returncode == 0)
    report.finish()


if __name__ == "__main__":
    main()
