"""Every parallel axis, ZeRO stage and pipeline schedule trains the same model to the same numbers as one rank; on a GPU
(HEARTH_TEST_DEVICE=cuda) over NCCL, in fp32 and in bf16."""
from fixture import Report, Workspace, device

# Correct splits of the same run were seen to stay within 3e-7 after 20 steps; ten times that is a bug.
TOLERANCE, STEPS = 2e-6, 20
TP, PP, CP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
SCHEDULE, CHUNKS, ZERO = "pipeline_schedule", "virtual_pipeline_model_parallel_size", "zero_stage"
# The model has 4 heads and 2 key/value heads: tensor parallelism of 4 shares each key/value head between two ranks.
LAYOUTS = [
    ("tp2", 2, {TP: 2}), ("tp2_rows_whole", 2, {TP: 2, "sequence_parallel": "false"}), ("tp4", 4, {TP: 4}),
    ("pp2", 2, {PP: 2}), ("pp4", 4, {PP: 4}), ("interleaved", 2, {PP: 2, SCHEDULE: "interleaved", CHUNKS: 2}),
    ("zb_h1", 2, {PP: 2, SCHEDULE: "zb_h1"}), ("zbv", 2, {PP: 2, SCHEDULE: "zbv"}),
    ("dualpipev", 2, {PP: 2, SCHEDULE: "dualpipev"}), ("zero2", 2, {ZERO: 2}), ("zero3", 2, {ZERO: 3}),
    ("ring", 2, {CP: 2}), ("all_to_all", 2, {CP: 2, "cp_comm_type": "a2a"}),
    ("tp2_pp2_dp2_zbv", 8, {TP: 2, PP: 2, SCHEDULE: "zbv"}),
    ("tp2_pp2_dp2_zero3_zb_h1", 8, {TP: 2, PP: 2, ZERO: 3, SCHEDULE: "zb_h1"}),
    ("tp2_pp2_cp2", 8, {TP: 2, PP: 2, CP: 2}),
]


def compare_layouts(report, workspace, dtype, base, tolerance):
    for name, ranks, layout in LAYOUTS:
        sets = [f"parallel.{key}={value}" for key, value in layout.items()] + [f"precision.dtype={dtype}"]
        workspace.train(f"{name}.{dtype}", ranks, sets=sets)
        losses = workspace.losses(f"{name}.{dtype}", STEPS)
        report.close_losses(f"{name} = one rank, {dtype}", losses, base, tolerance, tolerance)


def bf16_noise(bf16, fp32):
    """What rounding to bf16 moves one rank's curve by. Two layouts round at different places, so each may be that far
    from the fp32 curve: 2 x between them, and 2 x again since the worst of few steps is only a sample of the noise."""
    return 4 * max(abs(a - b) / b for a, b in zip(bf16, fp32))


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config(model__num_hidden_layers=4, training__train_iters=STEPS,
                               training__global_batch_size=16, training__micro_batch_size=2)
        workspace.train("one", 1)
        fp32 = workspace.losses("one", STEPS)
        compare_layouts(report, workspace, "fp32", fp32, TOLERANCE)
        if device() == "cuda":
            workspace.train("one.bf16", 1, sets=["precision.dtype=bf16"])
            bf16 = workspace.losses("one.bf16", STEPS)
            bound = bf16_noise(bf16, fp32)
            report.check("bf16 noise of one rank is small", bound <= 4 * 2e-3, f"bound between layouts {bound:.2e}")
            compare_layouts(report, workspace, "bf16", bf16, bound)
    report.finish()


if __name__ == "__main__":
    main()
