"""`hearth bench train` on the CPU: what it prints adds up, under a preset by name and by file, with documents, adapters, several
micro-batches, two data-parallel ranks and a teacher; `hearth bench kernels` says what it lacks; the rows of `hearth bench collectives`
on 2 and 4 ranks agree with themselves. No figure of speed is judged."""
import json
import math
import os

from fixture import REPOSITORY, Report, Workspace, hearth

SHAPE = ["model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", "model.num_key_value_heads=2",
         "model.head_dim=16", "model.intermediate_size=96", "model.vocab_size=500"]
PRESETS = os.path.join(REPOSITORY, "configs", "models")


def bench(folder, *arguments, preset=os.path.join(PRESETS, "smollm2-135m.yaml"), ranks=0, sets=(), **kwargs):
    settings = [word for item in [*SHAPE, *sets] for word in ("--set", item)]
    return hearth(["bench", "train", "--preset", preset, "--device", "cpu", "--steps", "4", "--warm-up", "1", "--seq", "32", "--mbs", "2",
                   *settings, *arguments], folder, ranks=ranks, **kwargs)


def numbers(report, name, done, ranks=1, accumulation=1, loss=math.log(500)):
    found = json.loads(done.stdout)
    tokens = 32 * 2 * accumulation * ranks
    report.check(f"{name}: tokens/s is the tokens of a step over its time",
                 abs(found["tokens_per_s"] * found["step_ms"] / 1e3 - tokens) <= 1e-6 * tokens, found["tokens_per_s"])
    report.check(f"{name}: p5 <= median <= p95", found["tokens_per_s_p5"] <= found["tokens_per_s"] <= found["tokens_per_s_p95"])
    # Random tokens and weights: cross-entropy begins near the entropy of the vocabulary, a divergence near 0.
    report.check(f"{name}: loss", abs(found["loss"] - loss) <= 0.5, found["loss"])
    return found


def collectives(report, folder, ranks):
    arguments = ["bench", "collectives", "--device", "cpu", "--min-bytes", "16kb", "--max-bytes", "256kb"]
    found = json.loads(hearth([*arguments, "--json"], folder, ranks=ranks).stdout)
    name = f"collectives on {ranks} ranks"
    report.check(f"{name}: heading", (found["backend"], found["ranks"], found["dtype"]) == ("mpi", ranks, "fp32"), found)
    want = [(op, size << 10) for op in ("all_reduce", "reduce_scatter", "all_gather") for size in (16, 64, 256)]
    rows = found["rows"]
    report.check(f"{name}: every operation and size", [(row["op"], row["bytes"]) for row in rows] == want, rows)
    times = [row[key] for row in rows for key in ("us", "library_us")]
    report.check(f"{name}: times", all(math.isfinite(t) and t > 0 for t in times), times)

    def near(got, exact):
        return abs(got - exact) <= 1e-9 * exact

    for row in rows:  # as doc/PERFORMANCE.md of nccl-tests has it: 1 GB/s is 1000 bytes per us
        links = (2 if row["op"] == "all_reduce" else 1) * (ranks - 1) / ranks
        report.check(f"{name}: rates of {row['op']}, {row['bytes']} bytes are bytes over time",
                     near(row["algorithm_gb_per_s"], row["bytes"] / row["us"] / 1e3)
                     and near(row["bus_gb_per_s"], links * row["bytes"] / row["us"] / 1e3)
                     and near(row["library_bus_gb_per_s"], links * row["bytes"] / row["library_us"] / 1e3)
                     and near(row["ratio"], row["library_us"] / row["us"]) and row["calls"] >= 3, row)
    text = hearth(arguments, folder, ranks=ranks).stdout.splitlines()
    report.check(f"{name}: text has a heading, column names and a row for each", len(text) == 2 + len(want)
                 and f"{ranks} ranks" in text[0] and [line.split()[0] for line in text[2:]] == [op for op, _ in want], text)


def main():
    report = Report()
    with Workspace() as workspace:
        folder = workspace.folder
        with open(workspace.path("teacher.yaml"), "w", encoding="utf-8") as out:  # another width than the student's
            out.write("family: llama\nhidden_size: 96\nnum_hidden_layers: 3\nnum_attention_heads: 4\nnum_key_value_heads: 4\n"
                      "head_dim: 24\nintermediate_size: 128\nvocab_size: 500\nmax_position_embeddings: 128\n")
        fp32 = numbers(report, "fp32", bench(folder, "--json", "--roofline", "0.05", sets=["precision.dtype=fp32"]))
        report.check("memory is counted", fp32["peak_memory_gib"] > 0, fp32["peak_memory_gib"])
        roof = fp32["roofline"]
        parts = roof["gemm_ms"] + roof["attention_ms"] + roof["bytes_ms"]
        report.check("the roofline is the sum of its parts", abs(roof["step_ms"] - parts) <= 1e-9 * parts and parts > 0, roof)
        report.check("reached is roofline over step",
                     abs(roof["reached_percent"] - 100 * parts / fp32["step_ms"]) <= 1e-6 * roof["reached_percent"])
        numbers(report, "documents", bench(folder, "--json", "--roofline", "0", "--documents", "9"))
        numbers(report, "two micro-batches", bench(folder, "--json", "--roofline", "0", "--accum", "2"), accumulation=2)
        two = numbers(report, "two ranks", bench(folder, "--json", "--roofline", "0", ranks=2), ranks=2)
        report.check("two ranks: each has half of the rate", two["ranks"] == 2 and two["tokens_per_s_per_rank"] == two["tokens_per_s"] / 2, two)
        lora = numbers(report, "adapters", bench(folder, "--json", "--roofline", "0", sets=["objective.lora_rank=4"]))
        report.check("adapters: no roofline, no count of operations", "roofline" not in lora and "tflops" not in lora)
        kept = numbers(report, "distillation", bench(folder, "--json", "--roofline", "0", "--teacher", os.path.join(folder, "teacher.yaml")), loss=0)
        report.check("distillation: no roofline", "roofline" not in kept)
        text = bench(folder, "--roofline", "0.05").stdout
        report.check("text names what JSON does", all(word in text for word in ("tokens/s", "TFLOP/s", "memory", "roofline")), text)
        named = bench(REPOSITORY, "--json", "--roofline", "0", preset="smollm2-135m")
        numbers(report, "a preset by name", named)
        wrong = bench(folder, preset="llama-9", check=False)
        report.check("an unknown preset is refused", wrong.returncode == 3 and "llama-9" in wrong.stderr, wrong.stderr)
        kernels = hearth(["bench", "kernels"], folder, check=False)
        report.check("bench kernels without a GPU ends with 11", kernels.returncode == 11 and "CUDA" in kernels.stderr, kernels.stderr)
        for ranks in (2, 4):
            collectives(report, folder, ranks)
        alone = hearth(["bench", "collectives", "--device", "cpu"], folder, check=False)
        report.check("bench collectives on one rank is refused", alone.returncode == 2 and "at least two" in alone.stderr, alone.stderr)
        bf16 = hearth(["bench", "collectives", "--device", "cpu", "--dtype", "bf16"], folder, ranks=2, check=False)
        report.check("bench collectives in bf16 over MPI is refused", bf16.returncode == 2 and "bf16" in bf16.stderr, bf16.stderr)
    report.finish()


if __name__ == "__main__":
    main()
