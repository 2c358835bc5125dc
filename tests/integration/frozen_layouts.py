"""Runs whose frozen weights come and go, split by zero_stage 3 or in NF4, have the losses of one rank that keeps them (or
quantises them alike), with validation and a generated sample in between: schedules of several chunks a rank, deferred weight
gradients, forward and backward at once, layers rebuilt in backward.      frozen_layouts.py [NAME...]"""
import json
import sys

from fixture import Report, Workspace

STEPS = 6
TOLERANCE = 2.5e-6  # ten times what sums in another order move a loss of this model by in as many steps
TP2, PP2, ZERO3 = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2", "parallel.zero_stage=3"
LORA = ["model.init_from=runs/start", "objective.lora_rank=4", "optimizer.lr_warmup_iters=0", "optimizer.lr=0.01"]
QLORA = [*LORA, "objective.quantize_base=nf4"]
DISTILL = ["objective.kind=distill", "objective.teacher=runs/start"]
FULL = ["recompute.granularity=full", "recompute.num_layers=2"]
OBJECTIVES = {"lora": LORA, "qlora": QLORA, "distill": DISTILL}

CASES = [
    ("lora_zero3_full", "lora", 2, [ZERO3, *FULL]),
    ("lora_zero3_zbv", "lora", 4, [PP2, ZERO3, "parallel.pipeline_schedule=zbv"]),
    ("lora_zero3_dualpipev", "lora", 8, [TP2, PP2, ZERO3, "parallel.pipeline_schedule=dualpipev"]),
    ("qlora_full", "qlora", 1, FULL),
    ("qlora_interleaved", "qlora", 4, [PP2, "parallel.pipeline_schedule=interleaved", "parallel.virtual_pipeline_model_parallel_size=2"]),
    ("qlora_dualpipev", "qlora", 4, [TP2, PP2, "parallel.pipeline_schedule=dualpipev"]),
    ("distill_zero3_full", "distill", 2, [ZERO3, *FULL]),
    ("distill_zero3_zbv", "distill", 4, [PP2, ZERO3, "parallel.pipeline_schedule=zbv"]),
    ("distill_zero3_dualpipev", "distill", 8, [TP2, PP2, ZERO3, "parallel.pipeline_schedule=dualpipev"]),
]


def validation_losses(workspace, run):
    with open(workspace.path("runs", run, "metrics.jsonl"), encoding="utf-8") as lines:
        return [entry["validation loss"] for entry in map(json.loads, lines) if "validation loss" in entry]


def main():
    report = Report()
    chosen = [case for case in CASES if not sys.argv[1:] or case[0] in sys.argv[1:]]
    with Workspace() as workspace:
        # Slices of two ranks hold whole blocks of NF4.
        workspace.write_config(
            model__hidden_size=128, model__intermediate_size=256, model__num_hidden_layers=4, training__micro_batch_size=1,
            training__train_iters=STEPS, training__eval_interval=STEPS // 2, training__eval_iters=2)
        workspace.train("start", sets=["training.train_iters=20", "training.seed=3"])
        for objective in sorted({case[1] for case in chosen}):
            workspace.train(objective, sets=OBJECTIVES[objective])
        for name, objective, ranks, sets in chosen:
            workspace.train(name, ranks, sets=[*OBJECTIVES[objective], *sets])
            report.close_losses(name, workspace.losses(name, STEPS), workspace.losses(objective, STEPS), TOLERANCE, TOLERANCE)
            got, want = validation_losses(workspace, name), validation_losses(workspace, objective)
            worst = max(abs(g - w) / w for g, w in zip(got, want))
            report.check(f"{name}: validation", len(got) == len(want) == 2 and worst <= TOLERANCE, f"{worst:.1e}")
    report.finish()


if __name__ == "__main__":
    main()
