"""Steps as CUDA graphs train as eager ones do, on one GPU (elsewhere: skipped, 77): bit for bit in deterministic mode, with one and
with several micro-batches and with adapters; with documents, whose number changes from step to step, and cuDNN's attention within
the noise of its backward pass; over a validation, a sample and a save between steps, and resumed."""
import sys

from fixture import Report, Workspace, device

STEPS = 40


def run(workspace, name, graph, sets=(), deterministic=True):
    workspace.train(name, 1, sets=[f"training.cuda_graph={graph}", "precision.dtype=bf16", f"training.train_iters={STEPS}",
                                   f"training.deterministic_mode={str(deterministic).lower()}", "training.eval_interval=10", *sets])
    return workspace.losses(name, STEPS)


def main():
    if device() != "cuda":
        print("skipped: no CUDA device")
        sys.exit(77)
    report = Report()
    whole = ["data.reset_attention_mask=false"]
    with Workspace() as workspace:
        workspace.write_config()
        cases = {"one micro-batch": [*whole, "training.micro_batch_size=8", "training.global_batch_size=8"],
                 "four micro-batches": [*whole, "training.micro_batch_size=2", "training.global_batch_size=8"],
                 "adapters": [*whole, "training.micro_batch_size=8", "training.global_batch_size=8", "objective.lora_rank=4",
                              "model.init_from=runs/one_micro-batch_eager"]}
        for name, sets in cases.items():
            tag = name.replace(" ", "_")
            report.same_losses(name, run(workspace, tag + "_graph", "on", sets), run(workspace, tag + "_eager", "off", sets))
        # Heads of 64, which cuDNN's attention takes.
        documents = ["model.head_dim=64", "training.micro_batch_size=4", "training.global_batch_size=8", "training.attention_backend=cudnn"]
        eager = run(workspace, "documents_eager", "off", documents, deterministic=False)
        again = run(workspace, "documents_again", "off", documents, deterministic=False)
        graph = run(workspace, "documents_graph", "on", documents, deterministic=False)
        noise = max(abs(a - b) / b for a, b in zip(again, eager))
        # The last bits of dq differ between any two runs; 40 steps of bf16 make at most 1e-2 of that (facts of precision.py).
        report.close_losses(f"documents (two eager runs differ by {noise:.1e})", graph, eager, 1e-3, 1e-2)
        log = workspace.train("documents_graph2", sets=["training.cuda_graph=on", "training.deterministic_mode=false", "precision.dtype=bf16",
                                                        *documents, "training.train_iters=12"]).stderr
        report.check("no reason against a graph was found", "state=off" not in log, log[-2000:])
    report.finish()


if __name__ == "__main__":
    main()
