"""`hearth bench train` on the CPU: what it prints adds up, under a preset by name and by file, with documents, adapters, several
micro-batches, two data-parallel ranks and a teacher; `hearth bench kernels` says what it lacks. No figure of speed is judged."""
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
    report.finish()


if __name__ == "__main__":
    main()
