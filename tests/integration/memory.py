"""Row 4 of the parallel core: peak memory of every rank, measured against the formula of --dry-run, for each ZeRO stage
and for tensor, pipeline and context parallelism.      memory.py [NAME...]     (HEARTH_TEST_DEVICE=cuda for a GPU)

Weights, gradients and optimizer state must be equal to the byte (weights and gradients under dualpipev with zero_stage 2 and 3: a bound). Of
runs with frozen weights (below adapters, of a teacher, of a reference) these three alone are compared. Activations: the formula counts each tensor that waits
for backward, and adds a working set, a model of the temporaries that live together at the peak. The first part is a
lower bound of any correct run up to ROUNDING; the second is a sum of a handful of tensors of which one more or one fewer
may be alive, so the bound on the difference is the working set itself. The model is wide enough for both to be far above
what is small and fixed (RoPE tables, row statistics); on CUDA the first matrix product also allocates cuBLAS's workspace,
WORKSPACE, which is known and no activation. On the CPU a bf16 product is formed in fp32: CONVERTED, the operands and the
result of the largest one (gate and up), come on top."""
import json
import re
import sys

from fixture import Report, Workspace, device, hearth

ROUNDING = 0.01
WORKSPACE = 33 << 20  # cuBLAS asks for 32 MiB + 8 KiB on compute capability 9.0 (PyTorch's CUBLAS_WORKSPACE_CONFIG default)
ROWS, HIDDEN, FFN = 256, 256, 704
CONVERTED = 4 * (2 * FFN * HIDDEN + ROWS * HIDDEN + ROWS * 2 * FFN)
PARTS = ["weights", "gradients", "optimizer", "activations"]

ALL_BF16 = ["precision.dtype=bf16", "precision.main_params_dtype=none", "precision.main_grads_dtype=bf16",
            "precision.exp_avg_dtype=bf16", "precision.exp_avg_sq_dtype=bf16"]

# name, ranks, changes of the configuration
CASES = [
    ("r1", 1, ["parallel.zero_stage=0"]),
    ("zero0", 2, ["parallel.zero_stage=0"]),
    ("zero1", 2, ["parallel.zero_stage=1"]),
    ("zero2", 2, ["parallel.zero_stage=2"]),
    ("zero3", 2, ["parallel.zero_stage=3"]),
    ("zero2_4", 4, ["parallel.zero_stage=2"]),
    ("zero3_4", 4, ["parallel.zero_stage=3"]),
    ("tp2", 2, ["parallel.tensor_model_parallel_size=2"]),
    ("tp2_rows_whole", 2, ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=false"]),
    ("pp2_1f1b", 2, ["parallel.pipeline_model_parallel_size=2"]),
    ("pp2_zb_h1", 2, ["parallel.pipeline_model_parallel_size=2", "parallel.pipeline_schedule=zb_h1"]),
    ("pp2_interleaved", 2, ["parallel.pipeline_model_parallel_size=2", "parallel.pipeline_schedule=interleaved",
                            "parallel.virtual_pipeline_model_parallel_size=2"]),
    ("pp2_zbv_zero3", 4, ["parallel.pipeline_model_parallel_size=2", "parallel.pipeline_schedule=zbv",
                          "parallel.zero_stage=3"]),
    ("cp2_ring", 2, ["parallel.context_parallel_size=2"]),
    ("cp2_a2a", 2, ["parallel.context_parallel_size=2", "parallel.cp_comm_type=a2a"]),
    ("tp2_dp2_zero2", 4, ["parallel.tensor_model_parallel_size=2", "parallel.zero_stage=2"]),
    ("tp2_full", 2, ["parallel.tensor_model_parallel_size=2", "recompute.granularity=full", "recompute.num_layers=2"]),
    ("tp2_pp2_zero2", 4, ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2",
                          "parallel.zero_stage=2"]),
    ("tp2_pp2_dualpipev", 4, ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2",
                              "parallel.pipeline_schedule=dualpipev"]),
    ("dualpipev_zero3", 8, ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2",
                            "parallel.pipeline_schedule=dualpipev", "parallel.zero_stage=3"]),
    ("keep_all", 1, ["recompute.granularity=none"]),
    ("core_attn", 1, ["recompute.modules=[norm,swiglu,core_attn]"]),
    ("full_2", 1, ["recompute.granularity=full", "recompute.num_layers=2"]),
    ("masked", 1, ["data.reset_attention_mask=true"]),
    ("tied_zero3", 2, ["model.tie_word_embeddings=true", "parallel.zero_stage=3"]),
    ("bf16_zero2", 2, ["precision.dtype=bf16", "parallel.zero_stage=2"]),
    *((f"bf16_grads_zero{stage}", 2, [*ALL_BF16, f"parallel.zero_stage={stage}"]) for stage in range(4)),
]

LORA = ["model.init_from=runs/start", "objective.lora_rank=8"]
DISTILL = ["objective.kind=distill", "objective.teacher=runs/start"]
DPO = ["objective.kind=dpo", "model.init_from=runs/start", "data.train=[{path: pairs}]", "data.reset_attention_mask=true"]
TIED = ["model.tie_word_embeddings=true"]


def tied(sets):
    return [word.replace("runs/start", "runs/tied") for word in sets] + TIED


FROZEN_CASES = [
    ("lora", 1, LORA),
    ("lora_zero3", 2, [*LORA, "parallel.zero_stage=3"]),
    ("lora_zero3_full", 2, [*LORA, "parallel.zero_stage=3", "recompute.granularity=full", "recompute.num_layers=2"]),
    ("lora_pp2_zbv_zero3", 4, [*LORA, "parallel.zero_stage=3", "parallel.pipeline_model_parallel_size=2",
                               "parallel.pipeline_schedule=zbv"]),
    ("qlora", 1, [*LORA, "objective.quantize_base=nf4"]),
    ("qlora_bf16", 1, [*LORA, "objective.quantize_base=nf4", "precision.dtype=bf16"]),
    ("qlora_pp2_zero3", 4, [*LORA, "objective.quantize_base=nf4", "parallel.zero_stage=3",
                            "parallel.pipeline_model_parallel_size=2"]),
    ("distill", 1, DISTILL),
    ("distill_zero3", 2, [*DISTILL, "parallel.zero_stage=3"]),
    ("distill_pp2_zero3", 4, [*DISTILL, "parallel.zero_stage=3", "parallel.pipeline_model_parallel_size=2"]),
    ("distill_tied_zero3", 2, [*tied(DISTILL), "parallel.zero_stage=3"]),
    ("lora_tied_zero3", 2, [*tied(LORA), "parallel.zero_stage=3"]),
    ("dpo_tied_zero3", 2, [*tied(DPO), "parallel.zero_stage=3"]),
    ("dpo", 1, DPO),
    ("dpo_zero3", 2, [*DPO, "parallel.zero_stage=3"]),
]


def write_pairs(workspace):
    """Preference pairs, packed to the length of a sample."""
    with open(workspace.path("pairs.jsonl"), "w", encoding="utf-8") as out:
        for i in range(400):
            answer = lambda word: [{"role": "assistant", "content": f"{word} " * (1 + i % 5)}]  # noqa: E731
            out.write(json.dumps({"prompt": [{"role": "user", "content": f"ka lo {i}"}], "chosen": answer("mi"),
                                  "rejected": answer("tu")}) + "\n")
    with open(workspace.path("template.jinja"), "w", encoding="utf-8") as out:
        out.write("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
                  "{% else %}{{ m.content }}{% endif %}{% endfor %}")
    hearth(["data", "prepare", "pairs.jsonl", "--tokenizer", "tokenizer", "--chat-template", "template.jinja", "--format",
            "preference", "--pack-length", ROWS // 2, "--output", "pairs"], workspace.folder)


def last_memory_event(workspace, run, rank):
    """{field: bytes} of the rank's last event=memory line."""
    with open(workspace.path("runs", run, "log", f"rank_{rank:04d}.log"), encoding="utf-8") as lines:
        found = [line for line in lines if "event=memory" in line]
    if not found:
        sys.exit(f"FAILED: {run}: rank {rank} wrote no event=memory")
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", found[-1])}


def mib(size):
    return f"{size / (1 << 20):8.2f}"


def compare(report, name, rank, seen):
    print(f"| {name:15} | {rank} | " + " | ".join(f"{mib(seen[p])} / {mib(seen['estimated_' + p])}" for p in PARTS)
          + f" | {mib(seen['estimated_working'])} |", flush=True)
    for part in PARTS[:3]:
        # Which units the two halves of an overlapped action hold at one time is counted as if both were the largest.
        bound = name.startswith("dualpipev") and part in ("weights", "gradients")
        if not (0.8 * seen["estimated_" + part] <= seen[part] <= seen["estimated_" + part] if bound
                else seen[part] == seen["estimated_" + part]):
            report.check(f"{name}: {part} of rank {rank}", False, f"{seen[part]} B, formula {seen['estimated_' + part]} B")


def compare_activations(report, name, rank, seen):
    extra = WORKSPACE if device() == "cuda" else CONVERTED if name.startswith("bf16") else 0
    got, want, working = seen["activations"], seen["estimated_activations"], seen["estimated_working"]
    kept = want - working
    report.check(f"{name}: rank {rank}", (1 - ROUNDING) * kept <= got <= (1 + ROUNDING) * want + working + extra,
                 f"activations {got / want:.3f} of the formula, allowed {(1 - ROUNDING) * kept / want:.3f} "
                 f"to {((1 + ROUNDING) * want + working + extra) / want:.3f}")


def main():
    report = Report()
    chosen = sys.argv[1:]
    with Workspace() as workspace:
        workspace.write_config(
            model__hidden_size=HIDDEN, model__intermediate_size=FFN, model__num_hidden_layers=8, model__num_attention_heads=8,
            model__num_key_value_heads=4, model__max_position_embeddings=128, model__tie_word_embeddings=False,
            data__seq_length=ROWS // 2, data__reset_attention_mask=False, parallel__bucket_size_mb=2,
            training__global_batch_size=16, training__train_iters=3)
        print("| layout          | rank | " + " | ".join(f"{p}, MiB: measured / formula" for p in PARTS) + " | working set |")
        for name, ranks, sets in CASES:
            if chosen and name not in chosen:
                continue
            workspace.train(name, ranks, sets=sets)
            for rank in range(ranks):
                seen = last_memory_event(workspace, name, rank)
                compare(report, name, rank, seen)
                compare_activations(report, name, rank, seen)
        chosen_frozen = [case for case in FROZEN_CASES if not chosen or case[0] in chosen]
        if chosen_frozen:
            write_pairs(workspace)
            for start, sets in (("start", []), ("tied", TIED)):
                workspace.train(start, sets=[*sets, "training.train_iters=1"])
        for name, ranks, sets in chosen_frozen:
            workspace.train(name, ranks, sets=sets)
            for rank in range(ranks):
                compare(report, name, rank, last_memory_event(workspace, name, rank))
    report.finish()


if __name__ == "__main__":
    main()
