"""A checkpoint written under any layout resumes under any other, optimizer state included, and goes on with the same
curve: one run whose layout changes every few steps against one rank that never stops.
    resume_layouts.py [all | SHAPE.DTYPE.CHAIN...]      all: each chain with each model; without an argument one of each in fp32.
The chain "two" is for a machine of two GPUs."""
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
    "two": [(2, {ZERO: 3}), (1, {}), (2, {TP: 2}), (2, {PP: 2, SCHEDULE: "zb_h1"}), (2, {CP: 2, ZERO: 2})],
}
SHAPES = {"tied": {}, "qwen3": {"model__family": "qwen3", "model__qk_norm": True, "model__tie_word_embeddings": False}}


def chosen(words):
    """(shape, dtype) -> names of chains."""
    everything = [f"{shape}.{dtype}.{chain}" for shape in SHAPES for dtype in ("fp32", "bf16") for chain in CHAINS]
    words = everything if words == ["all"] else words or ["tied.fp32.a", "qwen3.fp32.b"]
    if unknown := set(words) - set(everything):
        sys.exit(f"no {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
    groups = {}
    for name in words:
        shape, dtype, chain = name.split(".")
        groups.setdefault((shape, dtype), []).append(chain)
    return groups


def main():
    report = Report()
    with Workspace() as workspace:
        for (shape, dtype), chains in chosen(sys.argv[1:]).items():
            workspace.write_config(model__num_hidden_layers=4, training__train_iters=STEPS, training__global_batch_size=16,
                                   training__micro_batch_size=2, precision__dtype=dtype, **SHAPES[shape])
            workspace.train(f"{shape}.{dtype}", 1)
            base = workspace.losses(f"{shape}.{dtype}", STEPS)
            # bf16 rounds at other places in other layouts; what a lost moment or master does is 100 times more.
            tolerance = TOLERANCE if dtype == "fp32" else 2e-3
            for chain in chains:
                run = f"{shape}.{dtype}.{chain}"
                for number, (ranks, layout) in enumerate(CHAINS[chain], 1):
                    sets = [f"parallel.{key}={value}" for key, value in layout.items()]
                    workspace.train(run, ranks, sets=[*sets, f"training.train_iters={number * EVERY}"])
                report.close_losses(f"{run}: {len(CHAINS[chain])} layouts in turn = one rank", workspace.losses(run, STEPS), base, tolerance,
                                    tolerance)
    report.finish()


if __name__ == "__main__":
    main()
