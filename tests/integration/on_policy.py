"""On-policy distillation over whole runs: a student that writes half of its samples itself learns from a teacher; the run
stopped and resumed is bit-identical to the run at one go; and other layouts and micro-batches write the same texts.
    on_policy.py"""
from fixture import Report, Workspace

STEPS, CUT, FEW = 60, 25, 3
# Of one step of the same texts, losses differ by rounding alone: as in layouts.py, first 20 steps.
TOLERANCE = 2e-6
LAYOUTS = {"micro_batch_1": (1, ["training.micro_batch_size=1"]),
           "micro_batch_8": (1, ["training.micro_batch_size=8"]),
           "tp2": (2, ["parallel.tensor_model_parallel_size=2"]),
           "pp2": (2, ["parallel.pipeline_model_parallel_size=2"]),
           "cp2": (2, ["parallel.context_parallel_size=2"]),
           "dp2_zero3": (2, ["parallel.zero_stage=3"])}


def mean(values):
    return sum(values) / len(values)


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config("teacher.yaml", training__train_iters=150, data__validation=[], optimizer__lr=4e-3)
        workspace.train("teacher", 2, "teacher.yaml")
        workspace.write_config(training__train_iters=STEPS, training__eval_interval=STEPS, objective__kind="distill",
                               objective__teacher="runs/teacher", objective__kd_alpha=0.8, objective__on_policy_share=0.5,
                               training__seed=19, optimizer__lr=4e-3)
        workspace.train("whole")
        whole = workspace.metrics("whole")
        first, last = (mean([whole[s]["lm loss"] for s in steps]) for steps in (range(1, 6), range(STEPS - 4, STEPS + 1)))
        # Most of the loss is the divergence from the teacher: it falls to 0.26 here; a student that stays has 1.
        report.check("the student learns", last <= 0.7 * first, f"{first:.3f} -> {last:.3f}")
        share = mean([m["on-policy share"] for m in whole.values()])
        # 480 samples with 0.5 each: five standard deviations are 0.11; their tokens, half of the text, are a third of all.
        report.check("as many tokens as the share says", abs(share - 1 / 3) <= 0.11, f"{share:.3f} of the tokens")
        report.check("texts have a length", all(m["on-policy length"] > 1 for m in whole.values() if m["on-policy share"] > 0),
                     f"{mean([m['on-policy length'] for m in whole.values()]):.1f} tokens on average")

        workspace.train("cut", sets=[f"training.train_iters={CUT}"])
        workspace.train("cut")
        report.same_losses("stop + resume", workspace.losses("cut", STEPS), [whole[s]["lm loss"] for s in range(1, STEPS + 1)])
        for name, (ranks, sets) in LAYOUTS.items():
            workspace.train(name, ranks, sets=[*sets, f"training.train_iters={FEW}", "optimizer.lr_decay_iters=100"])
            got = workspace.metrics(name)
            same = all(got[s][key] == whole[s][key] for s in range(1, FEW + 1) for key in ("on-policy share", "on-policy length"))
            report.check(f"{name}: the same lengths of texts", same, [got[s]["on-policy length"] for s in got])
            report.close_losses(f"{name}: the same losses", [got[s]["lm loss"] for s in range(1, FEW + 1)],
                                [whole[s]["lm loss"] for s in range(1, FEW + 1)], TOLERANCE, TOLERANCE)
    report.finish()


if __name__ == "__main__":
    main()
