"""Does a teacher help? A student of 30M parameters (configs/distill.yaml) learns a corpus for the same number of tokens from
scratch and from SmolLM2-135M-Instruct, three seeds each; held-out loss of both. Made for a GPU; --steps 20 on a CPU shows that it runs.
    distill_student.py GGUF TEXT... [--steps N] [--seeds N] [--device cuda|cpu]
Each TEXT is a .jsonl file (field "text"), also .gz or .zst. Prints a table and one JSON line."""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
from fixture import REPOSITORY, hearth  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    a = parser.parse_args()
    gguf, texts = os.path.abspath(a.gguf), [os.path.abspath(text) for text in a.texts]
    with tempfile.TemporaryDirectory(prefix="hearth-distill.") as folder:
        hearth(["import", gguf, "--output", "teacher"], folder, threads=8, timeout=300)
        hearth(["data", "prepare", *texts, "--tokenizer", "teacher/tokenizer", "--output", "shards",
                "--validation-fraction", "0.02", "--seed", 5], folder, threads=8, timeout=600)

        def held_out(model):
            done = hearth(["eval", model, "--data", "shards/validation", "--device", a.device, "--json"], folder, threads=8, timeout=600)
            return json.loads(done.stdout)["loss"]

        def train(name, seed, sets):
            micro = min(a.batch, 16)
            common = ["data.train=[{path: shards/train}]", "data.validation=[]", f"training.train_iters={a.steps}",
                      f"training.global_batch_size={a.batch}", f"training.micro_batch_size={micro}", "training.eval_interval=0",
                      f"training.seed={seed}", f"optimizer.lr_warmup_iters={max(1, a.steps // 20)}", f"checkpoint.save=runs/{name}",
                      "checkpoint.save_interval=0", f"precision.dtype={'bf16' if a.device == 'cuda' else 'fp32'}"]
            begin = time.perf_counter()
            hearth(["train", os.path.join(REPOSITORY, "configs", "distill.yaml"), "--device", a.device] +
                   [word for item in common + sets for word in ("--set", item)], folder, ranks=1, threads=8, timeout=3000)
            return held_out(f"runs/{name}"), time.perf_counter() - begin

        alone, taught = [], []
        print(f"teacher: {held_out('teacher'):.4f} nats per token on the held-out text", flush=True)
        for seed in range(1, a.seeds + 1):
            loss, seconds = train(f"alone{seed}", seed, ["objective.kind=pretrain", "objective.teacher=null"])
            alone.append(loss)
            loss, more = train(f"taught{seed}", seed, ["objective.teacher=teacher"])
            taught.append(loss)
            print(f"seed {seed}: alone {alone[-1]:.4f} ({seconds:.0f} s), taught {taught[-1]:.4f} ({more:.0f} s)", flush=True)
        print(json.dumps({"tokens": a.steps * a.batch * 512, "alone": alone, "taught": taught,
                          "mean_alone": round(statistics.mean(alone), 4), "mean_taught": round(statistics.mean(taught), 4)}))


if __name__ == "__main__":
    main()
