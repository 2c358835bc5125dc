"""Every parallel axis, ZeRO stage and pipeline schedule trains the same model to the same numbers as one rank, in
the whole program; on a GPU (HEARTH_TEST_DEVICE=cuda) over NCCL.      parallel_layouts.py [NAME... | --ranks N]"""
import sys

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


def main():
    report = Report()
    # On one device the 8-rank layouts stand for all: the others run in one process (tests/trainer/layouts).
    everywhere = [entry for entry in LAYOUTS if device() == "cpu" or entry[1] == 8]
    if sys.argv[1:2] == ["--ranks"]:
        layouts = [entry for entry in LAYOUTS if entry[1] == int(sys.argv[2])]
    else:
        layouts = [entry for entry in LAYOUTS if entry[0] in sys.argv[1:]] or everywhere
    with Workspace() as workspace:
        workspace.write_config(model__num_hidden_layers=4, training__train_iters=STEPS, training__global_batch_size=16,
                               training__micro_batch_size=2, parallel__collective_timeout_s=60)
        workspace.train("one", 1)
        base = workspace.losses("one", STEPS)
        for name, ranks, layout in layouts:
            workspace.train(name, ranks, sets=[f"parallel.{key}={value}" for key, value in layout.items()])
            report.close_losses(f"{name} = one rank", workspace.losses(name, STEPS), base, TOLERANCE, TOLERANCE)
    report.finish()


if __name__ == "__main__":
    main()
