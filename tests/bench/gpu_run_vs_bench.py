"""Does a run reach the rate of the bench? `hearth train` with its data pipeline, a line of metrics every step and asynchronous
checkpoints, beside `hearth bench train` of the same shape before and after it, in one call on one GPU. A run's steps are timed from
outside, by when their log lines arrive, so that logging, the copy of a snapshot and a wait for the save before are in them.
The run counts after its first save, over whole periods between saves. Exits with 1 where its mean is below 99% of the bench.
    gpu_run_vs_bench.py [--save-interval STEPS] [--device DEVICE] [135m | 1b ...]
The default interval is the program's own, 100 steps; with 20 a small model's checkpoints may come faster than a disk takes them."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
from fixture import NO_SHAPE, REPOSITORY, Workspace, binary, hearth  # noqa: E402

# The 1B model's states are bf16, so that two of its checkpoints and a third being written take 27 GB of disk.
SHAPES = {"135m": ("smollm2-135m", 2048, 16, {}),
          "1b": ("llama-1b", 4096, 4, {"precision.main_params_dtype": "none", "precision.main_grads_dtype": "bf16",
                                       "precision.exp_avg_dtype": "bf16", "precision.exp_avg_sq_dtype": "bf16"})}
MEASURED, NEEDED = 80, 0.99  # steps at the least; share of the bench


def preset_file(preset):
    return os.path.join(REPOSITORY, "configs", "models", preset + ".yaml")


def bench(name, device):
    preset, seq, micro, precision = SHAPES[name]
    sets = [word for key, value in precision.items() for word in ("--set", f"{key}={value}")]
    done = hearth(["bench", "train", "--preset", preset_file(preset), "--seq", seq, "--mbs", micro, "--steps", 40, "--roofline", 0, "--json",
                   "--device", device, *sets], REPOSITORY, timeout=200)
    found = json.loads(done.stdout)
    print(json.dumps({"what": "bench"} | {key: found[key] for key in ("device", "tokens_per_s", "tokens_per_s_p5", "tokens_per_s_p95")}),
          flush=True)
    return found["tokens_per_s"]


def run(workspace, name, interval, steps, device):
    """When each step's line came, {step: seconds}; and when each save was begun (as its step ended) and committed."""
    preset, seq, micro, precision = SHAPES[name]
    # One document fills a window, as in the bench.
    changes = NO_SHAPE | {key.replace(".", "__"): value for key, value in precision.items()}
    changes.update(model__preset=preset_file(preset), data__seq_length=seq, data__reset_attention_mask=False, data__validation=[],
                   training__micro_batch_size=micro, training__global_batch_size=micro, training__train_iters=steps,
                   training__log_interval=1, precision__dtype="bf16", optimizer__lr=1e-4, optimizer__min_lr=1e-5,
                   optimizer__lr_decay_iters=None, checkpoint__save_interval=interval, checkpoint__keep_latest_k=1)
    config = workspace.write_config(f"{name}.yaml", **changes)
    command = [binary(), "train", config, "--device", device, "--set", f"checkpoint.save=runs/{name}"]
    ended, saves, lines = {}, {}, []
    with subprocess.Popen(command, cwd=workspace.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, errors="replace",
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        for line in process.stderr:
            now = time.perf_counter()
            lines.append(line)
            words = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "lm_loss" in words:
                ended[int(words["step"].split("/")[0])] = now
            elif words.get("event") == "checkpoint_committed":
                saves[int(words["step"])] = (ended[int(words["step"])], now, float(words["seconds"]))
            elif words.get("event") == "cuda_graph":
                print(line.rstrip())
    if process.returncode != 0 or len(ended) != steps:
        sys.exit(f"FAILED ({process.returncode}) after {len(ended)} of {steps} steps: {' '.join(command)}\n{''.join(lines[-20:])}")
    return ended, saves


def measure(workspace, name, interval, device):
    _, seq, micro, _ = SHAPES[name]
    periods = max(2, -(-MEASURED // interval))
    steps = interval * (1 + periods)
    before = bench(name, device)
    ended, saves = run(workspace, name, interval, steps, device)
    after = bench(name, device)
    figure, tokens = (before + after) / 2, seq * micro
    took = {step: ended[step] - ended[step - 1] for step in range(interval + 1, steps + 1)}
    saving = {step for step in took if any(begin < ended[step] and ended[step - 1] < end for begin, end, _ in saves.values())}

    def say(what, seconds):
        if not seconds:
            return float("nan")
        mean, median = tokens / statistics.mean(seconds), tokens / statistics.median(seconds)
        print(f"  {what:<34} {len(seconds):4d} steps   median {median:9.0f} ({median / figure:.4f})   mean {mean:9.0f} ({mean / figure:.4f})")
        return mean
    print(f"{name}, {seq} x {micro}: bench {before:.0f} before and {after:.0f} after, {figure:.0f} tokens/s; a run, and its share of that:")
    mean = say("all steps", list(took.values()))
    say("no save under way", [seconds for step, seconds in took.items() if step not in saving])
    say("a save under way", [seconds for step, seconds in took.items() if step in saving])
    typical = statistics.median(took.values())
    for step, (_, _, seconds) in sorted(saves.items()):
        if step + 1 in took:
            print(f"  save of step {step}: the step after it took {1e3 * (took[step + 1] - typical):.1f} ms longer; committed after {seconds:.2f} s")
    holds = mean >= NEEDED * figure
    print(json.dumps({"what": "run against bench", "shape": name, "save_interval": interval, "bench_tokens_per_s": figure,
                      "run_tokens_per_s": mean, "ratio": mean / figure, "needed": NEEDED, "ok": holds}), flush=True)
    return holds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["135m"], metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--save-interval", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.save_interval < 20:
        parser.error("--save-interval: a CUDA graph is captured and judged within the first 13 steps; give 20 or more")
    with Workspace(num_documents=4000) as workspace:
        holds = [measure(workspace, name, options.save_interval, options.device) for name in options.shapes]
    sys.exit(0 if all(holds) else 1)


if __name__ == "__main__":
    main()
