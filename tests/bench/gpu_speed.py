"""Row 11 of the foundation, GPU part: tokens/s of hearth in bf16, 1B at 4096 x 4 and 135M at 2048 x 16, as a user runs
it (real text, fused kernels, an optimizer step every global batch), median over steps after a warm-up. Prints one JSON
line per shape; tests/gpu.sh puts the peer's numbers beside it.      gpu_speed.py [1b|135m ...]"""
import json
import os
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
from fixture import NO_SHAPE, REPOSITORY, Workspace, hearth  # noqa: E402

SHAPES = {"1b": ("llama-1b.yaml", 4096, 4), "135m": ("smollm2-135m.yaml", 2048, 16)}
WARM_UP, STEPS = 5, 25


def measure(workspace, name):
    preset, seq, micro = SHAPES[name]
    changes = dict(NO_SHAPE)
    # Windows of one document each, as the peer's causal mask: packing is measured elsewhere.
    changes.update(model__preset=os.path.join(REPOSITORY, "configs", "models", preset), data__seq_length=seq,
                   data__reset_attention_mask=False, data__validation=[], training__micro_batch_size=micro,
                   training__global_batch_size=micro, training__train_iters=WARM_UP + STEPS, precision__dtype="bf16",
                   optimizer__lr_warmup_iters=10, optimizer__lr_decay_iters=1000, optimizer__lr=1e-4, optimizer__min_lr=1e-5)
    config = workspace.write_config(f"{name}.yaml", **changes)
    done = hearth(["train", config, "--device", "cuda", "--set", f"checkpoint.save=runs/{name}"], workspace.folder, ranks=1,
                  timeout=400)
    rates = [m["tokens/s"] for step, m in sorted(workspace.metrics(name).items()) if step > WARM_UP]
    peak = next((int(word.split("=")[1]) for word in done.stderr.split() if word.startswith("peak_memory_bytes=")), 0)
    last = workspace.metrics(name)[WARM_UP + STEPS]
    print(json.dumps({"shape": name, "seq": seq, "micro_batch": micro, "tokens_per_s": statistics.median(rates),
                      "tflops": last["tflops"], "mfu_percent": last["mfu(%)"], "peak_gib": round(peak / 2**30, 1)}), flush=True)


def main():
    with Workspace(num_documents=4000) as workspace:
        for name in sys.argv[1:] or SHAPES:
            measure(workspace, name)


if __name__ == "__main__":
    main()
