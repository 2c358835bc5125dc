"""A checkpoint written under any layout resumes under any other, optimizer state included, and goes on with the same
curve: one run whose layout changes every few steps against one rank that never stops.
    resume_layouts.py [all]      all: each chain with each model, else one of each in fp32"""
import sys

from fixture import Report, Workspace

TOLERANCE, STEPS, EVERY = 2e-6, 25, 5  # as parallel_layouts.py
TP, PP, CP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
SCHEDULE, CHUNKS, ZERO = "pipeline_schedule", "virtual_pipeline_model_parallel_size", "zero_stage"
COPIES = "num_distributed_optimizer_instances"
# Neighbours differ on every axis, stage and schedule: matrices cut by rows and columns, tables by vocabulary, shared
# key/value heads, flat shards, layers on other ranks.
CHAINS = {
    "a": [(8, {TP: 2, PP: 2, ZERO: 3, SCHEDULE: "zbv"}), (4, {CP: 2, ZERO: 2}), (4, {TP: 4}),
          (2, {PP: 2, ZERO: 0, SCHEDULE: "dualpipev"}), (1, {})],
    "b": [(1, {}), (8, {TP: 4, PP: 2, SCHEDULE: "interleaved", CHUNKS: 2}), (4, {ZERO: 3, COPIES: 2}),
          (8, {TP: 2, PP: 2, CP: 2, SCHEDULE: "zb_h1", ZERO: 1}), (2, {TP: 2, "sequence_parallel": "false"})],
}
SHAPES = {"tied": {}, "qwen3": {"model__family": "qwen3", "model__qk_norm": True, "model__tie_word_embeddings": False}}


def main():
    report = Report()
    with Workspace() as workspace:
        for shape, changes in SHAPES.items():
            for dtype in ("fp32", "bf16") if shape == "tied" and sys.argv[1:] == ["all"] else ("fp32",):
                workspace.write_config(model__num_hidden_layers=4, training__train_iters=STEPS,
                                       training__global_batch_size=16, training__micro_batch_size=2,
                                       precision__dtype=dtype, **changes)
                workspace.train(f"{shape}.{dtype}", 1)
                base = workspace.losses(f"{shape}.{dtype}", STEPS)
                # bf16 rounds at other places in other layouts; what a lost moment or master does is 100 times more.
                tolerance = TOLERANCE if dtype == "fp32" else 2e-3
                for chain, layouts in CHAINS.items():
                    if sys.argv[1:] != ["all"] and f"{shape}.{dtype}.{chain}" not in ("tied.fp32.a", "qwen3.fp32.b"):
                        continue
                    run = f"{shape}.{dtype}.{chain}"
                    for number, (ranks, layout) in enumerate(layouts, 1):
                        sets = [f"parallel.{key}={value}" for key, value in layout.items()]
                        workspace.train(run, ranks, sets=[*sets, f"training.train_iters={number * EVERY}"])
                    report.close_losses(f"{run}: {len(layouts)} layouts in turn = one rank",
                                        workspace.losses(run, STEPS), base, tolerance, tolerance)
    report.finish()


if __name__ == "__main__":
    main()
