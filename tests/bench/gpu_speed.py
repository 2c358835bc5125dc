"""Training speed on one GPU beside its peers': for each case `hearth bench train` and, with --peer, the peers' own scripts right
after it in the same call, then one table. Each run prints a line of JSON as soon as it ends, so that nothing is lost on a time-out.
    gpu_speed.py [--peer FOLDER [--modes REGEX] | --no-peer] [--timeout SECONDS] [--roofline SECONDS] [CASE ...]
FOLDER holds torch_train.py (plain PyTorch: --preset --seq --mbs --accum --mode --attn --fp32master, one JSON line),
run_hf_liger.py (transformers + Liger, needs liger_kernel), run_titan.sh (TorchTitan, needs torchtitan; its GiB are what it
reserved), run_lora.py (PEFT with and without Liger and compile), torch_kd.py and run_kd_liger.py; default $HEARTH_PEER. What it
lacks is left out. gpu_finetune.py measures LoRA and distillation as a user runs them, from files. TFLOP/s are 6 x (parameters that
multiply) + causal attention, on both sides. A case without a peer's script has a figure of another card, which gives no ratio."""
import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BF16_STATES = {"precision.main_params_dtype": "none", "precision.main_grads_dtype": "bf16", "precision.exp_avg_dtype": "bf16",
               "precision.exp_avg_sq_dtype": "bf16"}
LORA = BF16_STATES | {"objective.lora_rank": 16, "objective.lora_alpha": 32}
DISTILL = BF16_STATES | {"objective.logit_kl_temperature": 2.0}
UNTIED = {"model.tie_word_embeddings": "false"}  # the peers' models are
KEEP = {"recompute.granularity": "none"}  # outputs of norms and SwiGLU too, where memory is left


def case(preset, seq, mbs, accum=1, peer=None, sets=BF16_STATES, published=None, kind="train", teacher=None):
    return {"preset": preset, "seq": seq, "mbs": mbs, "accum": accum, "peer": peer, "sets": sets, "published": published, "kind": kind,
            "teacher": teacher}


def published(tokens_per_s, tflops, gib):
    return {"what": "LLM.Q, H200, figure of another call", "tokens_per_s": tokens_per_s, "tflops": tflops, "peak_gib": gib}


# States are bf16 (8 bytes a parameter with the gradient) unless the name says fp32.
CASES = {
    "1b": case("llama-1b", 4096, 4, peer="1b"),
    "1b_fp32": case("llama-1b", 4096, 4, peer="1b", sets={}),
    "135m": case("smollm2-135m", 2048, 16, peer="135m", sets=BF16_STATES | UNTIED),
    "135m_small": case("smollm2-135m", 2048, 2, peer="135m", sets=BF16_STATES | UNTIED),
    "135m_mid": case("smollm2-135m", 2048, 8, peer="135m", sets=BF16_STATES | UNTIED),
    "1b_keep": case("llama-1b", 4096, 4, peer="1b", sets=BF16_STATES | KEEP),
    "135m_keep": case("smollm2-135m", 2048, 16, peer="135m", sets=BF16_STATES | UNTIED | KEEP),
    "7b": case("llama-2-7b", 4096, 2, peer="7b"),
    "8b": case("llama-3-8b", 8192, 1, peer="8b"),
    "lora_1b": case("llama-1b", 2048, 4, peer="1b", sets=LORA, kind="lora"),
    "lora_8b": case("llama-3-8b", 2048, 2, peer="8b", sets=LORA, kind="lora"),
    "kd_8b_1b": case("llama-1b", 2048, 4, peer="1b", sets=DISTILL, kind="distill", teacher="llama-3-8b"),
    "qwen_0.5b": case("qwen2.5-0.5b", 2048, 16, 4, published=published(145000, 469, 38)),
    "qwen_1.5b": case("qwen2.5-1.5b", 4096, 4, 4, published=published(53200, 549, 47)),
    "qwen_7b": case("qwen2.5-7b", 4096, 2, 4, published=published(13200, 592, 95)),
}


def last_json(text):
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                pass
    return None


def run_together(commands, timeout, environments):
    """Of each command, begun at once, the last line of JSON that it prints, or {"failed": why}. In groups of their own: compilers leave
    workers behind. An environment is what its command's has beside ours."""
    end = time.monotonic() + timeout
    processes = [subprocess.Popen(command, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                                  start_new_session=True, env=os.environ | more) for command, more in zip(commands, environments, strict=True)]
    try:
        return [result(process, max(end - time.monotonic(), 0.1), timeout) for process in processes]
    finally:  # our own end too: a group of its own hears nothing of it
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def result(process, left, timeout):
    try:
        out, err = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result in {timeout:g} s"}
    found = last_json(out)
    if process.returncode == 0 and found:
        return found
    last = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), "")
    out_of_memory = re.search("out of memory", err, re.IGNORECASE)
    return {"failed": "out of memory" if out_of_memory else f"exit {process.returncode}: {last[:200]}"}


def run(command, timeout):
    return run_together([command], timeout, [{}])[0]


def hearth_command(c, roofline):
    preset = os.path.join(REPOSITORY, "configs", "models", c["preset"] + ".yaml")
    sets = [word for key, value in c["sets"].items() for word in ("--set", f"{key}={value}")]
    if c["teacher"]:
        sets += ["--teacher", os.path.join(REPOSITORY, "configs", "models", c["teacher"] + ".yaml")]
    return [os.path.abspath(os.environ["HEARTH_BINARY"]), "bench", "train", "--preset", preset, "--seq", str(c["seq"]), "--mbs", str(c["mbs"]),
            "--accum", str(c["accum"]), "--roofline", str(roofline), "--device", "cuda", "--json", *sets]


def finetune_commands(c, folder):
    script, modes = {
        "lora": ("run_lora.py", {"PEFT, compile, Liger's loss, cuDNN": ["flce+compile", "--lora-dtype", "bf16", "--cudnn"],
                                 "PEFT, Liger": ["liger", "--lora-dtype", "bf16"], "PEFT, eager": ["peft", "--lora-dtype", "bf16"]}),
        "distill": ("run_kd_liger.py", {"compile, Liger's loss": ["liger+compile"]})}[c["kind"]]
    model = [c["peer"]] if c["kind"] == "lora" else []
    commands = {mode: [sys.executable, os.path.join(folder, script), *model, str(c["seq"]), str(c["mbs"]), *words]
                for mode, words in modes.items() if os.path.exists(os.path.join(folder, script))}
    plain = os.path.join(folder, "torch_kd.py")
    if c["kind"] == "distill" and os.path.exists(plain):
        commands["eager"] = [sys.executable, plain, str(c["seq"]), str(c["mbs"]), "eager"]
    return commands


def peer_commands(c, folder):
    """{mode: command} of what there is."""
    if c["kind"] != "train":
        return finetune_commands(c, folder)
    commands = {}
    size = [str(c["seq"]), str(c["mbs"])]
    master = not c["sets"].get("precision.main_params_dtype")
    plain = os.path.join(folder, "torch_train.py")
    if os.path.exists(plain):
        for mode, words in {"compile": ["compile"], "compile, cuDNN": ["compile", "--attn", "cudnn"], "eager": ["eager"]}.items():
            commands[mode] = [sys.executable, plain, "--preset", c["peer"], "--seq", size[0], "--mbs", size[1], "--accum", str(c["accum"]),
                              "--mode", *words] + (["--fp32master"] if master else [])
    liger = os.path.join(folder, "run_hf_liger.py")
    if os.path.exists(liger) and importlib.util.find_spec("liger_kernel"):
        commands["Liger, compile, cuDNN"] = [sys.executable, liger, c["peer"], *size, "flce+compile", "--cudnn", "--accum", str(c["accum"])] + \
            (["--fp32"] if master else [])
    titan = os.path.join(folder, "run_titan.sh")
    if c["accum"] == 1 and os.path.exists(titan) and importlib.util.find_spec("torchtitan"):
        commands["TorchTitan"] = ["env", f"PYTHON={sys.executable}", "bash", titan, c["peer"].upper(), *size, "fp32" if master else "bf16", "none", "no"]
    return commands


def peer_figures(found):
    return {"tokens_per_s": found["tok_s"], "tflops": found.get("tflops", found.get("tflops_causal")),
            "peak_gib": found.get("peak_gib", found.get("peak_reserved_gib"))}


def measure(name, options):
    """Hearth's figures and {what: figures} of its peers; each figure is said as soon as it is known."""
    c = CASES[name]

    def say(what, found):
        print(json.dumps({"case": name, "what": what} | found), flush=True)
        return found
    ours = say("hearth", run(hearth_command(c, options.roofline), options.timeout))
    peers = {}
    if c["published"]:
        peers[c["published"]["what"]] = c["published"]
    elif options.peer:
        for mode, command in peer_commands(c, options.peer).items():
            if not re.search(options.modes, mode):
                continue
            found = say(mode, run(command, options.timeout))
            peers[mode] = found if "failed" in found else peer_figures(found)
    return ours, peers


def print_table(results):
    columns = "{:<12} {:<36} {:>9} {:>8} {:>7} {:>9}  {}"
    print(columns.format("case", "what", "tokens/s", "TFLOP/s", "GiB", "roofline", ""))
    for name, (ours, peers) in results.items():
        c = CASES[name]
        shape = f"{c['seq']} x {c['mbs']}" + (f" x {c['accum']}" if c["accum"] > 1 else "")
        if "failed" in ours:
            print(columns.format(name, f"Hearth, {shape}", "-", "-", "-", "-", ours["failed"]))
        else:
            roofline = f"{ours['roofline']['reached_percent']:.1f}%" if "roofline" in ours else "-"
            print(columns.format(name, f"Hearth, {shape}", f"{ours['tokens_per_s']:.0f}", f"{ours['tflops']:.1f}" if "tflops" in ours else "-",
                                 f"{ours['peak_memory_gib']:.1f}", roofline, ours["device"]))
        rates = {what: p["tokens_per_s"] for what, p in peers.items() if "failed" not in p}
        best = max(rates, key=rates.get) if rates else None
        for what, p in peers.items():
            if "failed" in p:
                print(columns.format("", what, "-", "-", "-", "", p["failed"]))
                continue
            ratio = "" if "failed" in ours or c["published"] else f"Hearth {ours['tokens_per_s'] / p['tokens_per_s']:.3f} x"
            print(columns.format("", what, p["tokens_per_s"], p["tflops"] or "-", f"{p['peak_gib']:.1f}", "",
                                 ratio + (", the best peer" if what == best and len(rates) > 1 else "")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--peer", metavar="FOLDER", default=os.environ.get("HEARTH_PEER"))
    parser.add_argument("--no-peer", dest="peer", action="store_const", const=None)
    parser.add_argument("--modes", metavar="REGEX", default="", help="only the peers' modes that it finds, e.g. '^compile'")
    parser.add_argument("--timeout", type=float, default=150, help="seconds of one run")
    parser.add_argument("--roofline", type=float, default=1, help="seconds of each of Hearth's own measurements of the card; 0: none")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.peer and not os.path.isdir(options.peer):
        parser.error(f"--peer: no folder {options.peer}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = {}
    try:
        for name in options.cases or CASES:
            results[name] = measure(name, options)
    finally:
        print_table(results)
    if any("failed" in ours for ours, _ in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
