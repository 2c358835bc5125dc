"""Scaling of pretraining over the GPUs of one host: `hearth bench train` under several layouts on 1, 2, 4, ... ranks beside PyTorch's
DDP and FSDP2 (peer_parallel.py) on the same shapes, one rank a GPU, random weights and tokens, all states bf16. Each run is a line of
JSON in the results file as soon as it ends; a run that the file has already is not made again, so that a call that was cut short, or has
little time, is resumed by the next one. Then one table of all that the file knows.
    gpu_scaling.py [--results FILE] [--seconds N] [--ranks N,N] [--only REGEX] [--list] [--smoke] [MODEL ...]
MODEL is 1b (4096 x 4) or 8b (8192 x 1); --smoke runs a tiny model on the CPU over MPI and gloo, to try the script. Rates are tokens/s of
each GPU. "efficiency" is that over one GPU's at the same shape: weak scaling for ZeRO and for PyTorch (a micro-batch on every GPU), strong
for the rest (tp2, pp2, cp2 split the work of one GPU; "strong" keeps the samples of a step). "exposed" ms of communication have no compute
beside them; an all-gather by copy engines counts with this rank's copies, and what it waits for its peers' is in "idle", when no kernel
runs. Cards of a host differ by a percent or two, so what one GPU does is measured on every GPU at once, each by itself, and the mean
counts. Exits with 1 where one of ours (with --smoke: any) failed."""
import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gpu_speed import BF16_STATES, REPOSITORY, run_together  # noqa: E402

TESTS = os.path.join(REPOSITORY, "tests")
TP, PP, CP, ZERO = ("parallel." + key for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
                                                  "zero_stage"))
SCHEDULE = "parallel.pipeline_schedule"
# One GPU would spend the few steps here on finding out whether a CUDA graph pays; several GPUs have none.
EAGER = BF16_STATES | {"training.cuda_graph": "off"}
TINY = BF16_STATES | {"model.num_hidden_layers": 2, "model.hidden_size": 64, "model.num_attention_heads": 4, "model.num_key_value_heads": 2,
        "model.head_dim": 16, "model.intermediate_size": 96, "model.vocab_size": 500}
MODELS = {
    "1b": {"preset": "llama-1b", "seq": 4096, "mbs": 4, "long": 32768, "sets": EAGER, "seconds": 45},
    "8b": {"preset": "llama-3-8b", "seq": 8192, "mbs": 1, "long": 32768, "sets": EAGER, "seconds": 110,
           "long_sets": {"model.max_position_embeddings": 32768}},
    "tiny": {"preset": "smollm2-135m", "seq": 32, "mbs": 2, "long": 64, "sets": TINY, "seconds": 5},
}
MICRO_BATCHES = 8  # of a pipeline's step, and of the step whose samples "strong" divides
# name: ranks that one copy of the model takes, settings, whether samples of a long sequence, micro-batches on N ranks
LAYOUTS = {
    "zero1": (1, {ZERO: 1}, False, lambda n: 1),
    "zero3": (1, {ZERO: 3}, False, lambda n: 1),
    "tp2": (2, {TP: 2, ZERO: 1}, False, lambda n: 1),
    "tp2_dualpipev": (2, {TP: 2, ZERO: 1, SCHEDULE: "dualpipev"}, False, lambda n: MICRO_BATCHES),
    "pp2_1f1b": (2, {PP: 2, ZERO: 1}, False, lambda n: MICRO_BATCHES),
    "pp2_zb_h1": (2, {PP: 2, ZERO: 1, SCHEDULE: "zb_h1"}, False, lambda n: MICRO_BATCHES),
    "cp2_long": (2, {CP: 2, ZERO: 3}, True, lambda n: 1),
    "strong": (1, {ZERO: 1}, False, lambda n: max(1, MICRO_BATCHES // n)),
}
# One GPU at the shape of a layout's samples: what its efficiency is measured from.
BASES = {"one": (1, {}, False, lambda n: 1), "one_accum": (1, {}, False, lambda n: MICRO_BATCHES), "one_long": (1, {}, True, lambda n: 1)}
BASE_OF = {"tp2_dualpipev": "one_accum", "pp2_1f1b": "one_accum", "pp2_zb_h1": "one_accum", "strong": "one_accum", "cp2_long": "one_long"}
PEERS = ["ddp", "fsdp2"]
# What the goals are about, with what it is measured from; then the rest with its own.
ORDER = [(["one"], ["zero1", "ddp", "zero3", "fsdp2"]),
         (["one_accum", "one_long"], ["tp2", "tp2_dualpipev", "cp2_long", "pp2_1f1b", "pp2_zb_h1", "strong"])]
# The goals: efficiency of weak scaling, and percent of communication that compute covers.
GOALS = {("1b", "zero1"): 0.97, ("8b", "zero3"): 0.95}
COVERED = {"zero1": 90, "zero3": 90, "tp2": 60, "tp2_dualpipev": 60}
NEEDED_OF_FSDP2 = 1.05


def hearth_command(model, name, ranks, smoke):
    m = MODELS[model]
    _, layout, is_long, micro_batches = {**LAYOUTS, **BASES}[name]
    sets = m["sets"] | layout | (m.get("long_sets", {}) if is_long else {})
    warm_up, steps = (4, 10) if micro_batches(ranks) < MICRO_BATCHES else (3, 4)
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return [*([os.path.join(TESTS, "mpirun.sh"), str(ranks)] if ranks > 1 else []), os.path.abspath(os.environ["HEARTH_BINARY"]), "bench", "train",
            "--preset", os.path.join(REPOSITORY, "configs", "models", m["preset"] + ".yaml"), "--seq", str(m["long"] if is_long else m["seq"]),
            "--mbs", str(1 if is_long else m["mbs"]), "--accum", str(micro_batches(ranks)), "--warm-up", str(warm_up), "--steps", str(steps),
            "--roofline", "0", "--device", "cpu" if smoke else "cuda", "--json", *words]


def peer_command(model, mode, ranks, smoke):
    m = MODELS[model]
    how = ["--device", "cpu", "--no-compile", "--steps", "6"] if smoke else ["--attn", "cudnn"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), os.path.join(TESTS, "bench", "peer_parallel.py"),
            mode, "--preset", model, "--seq", str(m["seq"]), "--mbs", str(m["mbs"]), *how]


def hearth_figures(found):
    exchanged = found.get("communication", {})
    return {"rate": found["tokens_per_s_per_rank"], "mfu": found.get("mfu_percent"), "gib": found["peak_memory_gib"], "step_ms": found["step_ms"],
            "loss": found.get("loss"), "covered": exchanged.get("all", {}).get("covered_percent"), "exposed_ms": exchanged.get("all", {}).get("exposed_ms"),
            "idle_ms": found.get("device_idle_ms"),
            "exchange": exchanged, "clock": found.get("device_readings", {}).get("sm_clock_mhz"), "device": found["device"]}


def peer_figures(found):
    return {"rate": found["tok_s_per_gpu"], "gib": found["peak_gib"], "step_ms": found["step_ms"]}


def plan(models, counts, smoke):
    """(key, command, figures of its JSON) in the order of what is asked for first."""
    rows = []

    def add(model, name, ranks):
        peer = name in PEERS
        rows.append((f"{model}/{name}/{ranks}", (peer_command if peer else hearth_command)(model, name, ranks, smoke),
                     peer_figures if peer else hearth_figures))
    for bases, names in ORDER:
        for model in models:
            for base in bases:
                add(model, base, 1)
            for ranks in counts:
                for name in names:
                    # A copy of the 8B model and its states is 64 GB and more: DDP holds one on each GPU, and so does ZeRO-1 for the weights.
                    if ranks % (LAYOUTS[name][0] if name in LAYOUTS else 1) == 0 and not (model == "8b" and name in ("ddp", "strong")):
                        add(model, name, ranks)
    return rows


def run_on_each(command, gpus, left, figures):
    """A program of one GPU on every GPU at once: the mean of their rates, the rest from the first."""
    ours = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = ours if len(ours) >= gpus and ours[0] else [str(gpu) for gpu in range(gpus)]
    each = run_together([command] * gpus, left, [{"CUDA_VISIBLE_DEVICES": name} for name in names[:gpus]])
    failed = next((found for found in each if "failed" in found), None)
    if failed:
        return failed
    each = [figures(found) for found in each]
    rates = [found["rate"] for found in each]
    return each[0] | {"rate": statistics.mean(rates), "rate_on_each": rates}


def read_results(path):
    known = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                known[entry["key"]] = entry
    return known


def measure(rows, gpus, options):
    known = read_results(options.results)
    begin = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // gpus))
    for key, command, figures in rows:
        if key in known and known[key].get("failed") in (None, "out of memory"):
            continue
        model, _, ranks = key.split("/")
        left = options.seconds - (time.monotonic() - begin)
        if left < MODELS[model]["seconds"]:
            print(f"{left:.0f} s are left, {key} may take {MODELS[model]['seconds']}: the next call goes on from here", flush=True)
            break
        begun = time.monotonic()
        if ranks == "1":
            found = run_on_each(command, gpus, left, figures)
        else:
            [found] = run_together([command], left, [{}])
            found = found if "failed" in found else figures(found)
        entry = {"key": key} | found | {"took_s": round(time.monotonic() - begun)}
        known[key] = entry
        with open(options.results, "a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
    return known


def number(value, form):
    return "-" if value is None else format(value, form)


def verdict(value, goal):
    return "" if value is None else f" ({'ok' if value >= goal else 'below'}, {goal:g})"


def print_table(known):
    """One line a run; what the goals are about carries its verdict."""
    columns = "{:<22} {:>5} {:>10} {:>6} {:>7} {:>9} {:>8} {:>6}  {:<24} {:<24} {}"
    print(columns.format("model/layout", "ranks", "tok/s/GPU", "MFU %", "GiB", "step ms", "exposed", "idle", "covered %", "efficiency", "of FSDP2"))
    for key, entry in known.items():
        model, name, ranks = key.split("/")
        if "failed" in entry:
            print(columns.format(f"{model}/{name}", ranks, "-", "-", "-", "-", "-", "-", "", "", entry["failed"][:60]))
            continue
        base = known.get(f"{model}/{BASE_OF.get(name, 'one')}/1", {}).get("rate")
        efficiency = entry["rate"] / base if base and name not in BASES else None
        fsdp2 = known.get(f"{model}/fsdp2/{ranks}", {}).get("rate")
        ratio = entry["rate"] / fsdp2 if fsdp2 and name in ("zero1", "zero3") else None
        goal = GOALS.get((model, name))
        covered = number(entry.get("covered"), ".1f") + (verdict(entry.get("covered"), COVERED[name]) if name in COVERED else "")
        print(columns.format(f"{model}/{name}", ranks, f"{entry['rate']:.0f}", number(entry.get("mfu"), ".1f"), f"{entry['gib']:.1f}",
                             f"{entry['step_ms']:.1f}", number(entry.get("exposed_ms"), ".1f"), number(entry.get("idle_ms"), ".1f"), covered,
                             number(efficiency, ".3f") + (verdict(efficiency, goal) if goal else ""),
                             number(ratio, ".3f") + (verdict(ratio, NEEDED_OF_FSDP2) if ratio else "")))


def missing(rows, known):
    """Keys without figures that a run can have."""
    return [key for key, *_ in rows if not all(known.get(key, {}).get(figure, 0) > 0 for figure in ("rate", "step_ms"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="1b, 8b")
    parser.add_argument("--results", metavar="FILE", help="default scaling.jsonl here; with --smoke a temporary one")
    parser.add_argument("--seconds", type=float, default=500, help="begin no run that may end later")
    parser.add_argument("--ranks", default="2", help="numbers of GPUs beside one, e.g. 2,4,8")
    parser.add_argument("--only", metavar="REGEX", default="", help="runs whose MODEL/LAYOUT/RANKS it finds")
    parser.add_argument("--list", action="store_true", help="print the commands instead")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    models = ["tiny"] if options.smoke else options.models or ["1b", "8b"]
    if any(model not in MODELS for model in models):
        parser.error(f"models are {', '.join(MODELS)}")
    counts = [int(n) for n in options.ranks.split(",")]
    rows = [row for row in plan(models, counts, options.smoke) if re.search(options.only, row[0])]
    if options.list:
        for key, command, _ in rows:
            print(key, " ".join(command))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        options.results = options.results or os.path.join(folder if options.smoke else "", "scaling.jsonl")
        try:
            known = measure(rows, max(counts), options)
        finally:
            print_table(read_results(options.results))
    if any("failed" in entry and (options.smoke or key.split("/")[1] not in PEERS) for key, entry in known.items()):
        sys.exit(1)
    if options.smoke and missing(rows, known):
        sys.exit(f"no good figures of {', '.join(missing(rows, known))}")


if __name__ == "__main__":
    main()
