"""Traces: what a rank did in a few steps, by name, as Perfetto reads it; and how much communication hides.
trace.py            two ranks on the CPU: the file is valid and holds each pipeline action, call and operator
trace.py table      four ranks on GPUs (HEARTH_TEST_DEVICE=cuda): the share of communication time that compute on other
                    streams covers, for several layouts of a 150M model in bf16; --keep FOLDER keeps the traces.
                    Ranks that share a device need CUDA MPS for figures that mean something."""
import collections
import json
import os
import shutil
import sys

from fixture import Report, Workspace, device, hearth

TP, PP, CP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
FIRST, END = 3, 5  # two steps
# 150M parameters: kernels long enough that hiding a call is possible at all.
MODEL = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8,
             max_position_embeddings=1024)
SEQ_LENGTH = 1024
LAYOUTS = {
    "tp2_dp2": {TP: 2, "zero_stage": 1}, "tp2_dp2_overlapped": {TP: 2, "pipeline_schedule": "dualpipev"}, "tp2_pp2": {TP: 2, PP: 2}, "cp2_dp2": {CP: 2, "zero_stage": 1},
    "dp4_zero3": {"zero_stage": 3},
}
EXPECTED = {
    "tp2_dp2": {"tp all-gather", "tp reduce-scatter", "dp reduce-scatter", "dp all-gather"},
    "tp2_dp2_overlapped": {"tp all-gather", "tp reduce-scatter", "dp reduce-scatter", "dp all-gather"},
    "tp2_pp2": {"tp all-gather", "tp reduce-scatter", "pp send/recv"},
    "cp2_dp2": {"cp ring", "dp reduce-scatter", "dp all-gather"},
    "dp4_zero3": {"dp reduce-scatter", "dp all-gather"},
}


def read_trace(workspace, run, rank):
    with open(workspace.path("runs", run, "trace", f"rank_{rank:04d}.json"), encoding="utf-8") as file:
        return json.load(file)


def well_formed(trace):
    """What Perfetto's importer asks of an event, and whether spans of a thread nest."""
    threads = collections.defaultdict(list)
    for event in trace["traceEvents"]:
        phase = event["ph"]
        if not isinstance(event["pid"], int) or not isinstance(event["tid"], int):
            return f"pid or tid is not a number: {event}"
        if not isinstance(event["ts"], (int, float)) or event["ts"] < 0:
            return f"no time: {event}"
        if phase == "X":
            if not event["dur"] >= 0:
                return f"no duration: {event}"
            if event["cat"] in ("cpu_op", "user_annotation"):
                threads[event["pid"], event["tid"]].append((event["ts"], -event["dur"], event["name"]))
        elif phase not in "Mbesfit":
            return f"unknown phase: {event}"
    for spans in threads.values():
        open_until = []
        for begin, minus_duration, name in sorted(spans):
            end = begin - minus_duration
            while open_until and open_until[-1] <= begin + 1e-2:  # times are rounded to 1 ns, sums of doubles to less
                open_until.pop()
            if open_until and end > open_until[-1] + 1e-2:
                return f"{name} at {begin} ends after what it began in"
            open_until.append(end)
    return ""


def names(trace, category):
    return collections.Counter(e["name"] for e in trace["traceEvents"] if e.get("cat") == category and e["ph"] in "Xb")


def expected_actions(rank, micros, steps):
    """1F1B on two stages."""
    transfers = ["SendForward", "RecvBackward"] if rank == 0 else ["RecvForward", "SendBackward"]
    return {f"{kind} chunk 0 micro {m}": steps for kind in ["Forward", "Backward", *transfers] for m in range(micros)}


def check_two_ranks(report, workspace):
    workspace.write_config(model__num_hidden_layers=4, training__train_iters=6, training__global_batch_size=8,
                           training__micro_batch_size=2, profile__enabled=True, profile__step_start=FIRST,
                           profile__step_end=END)
    workspace.train("plain", 2, sets=["profile.enabled=false", f"parallel.{PP}=2"])
    workspace.train("pp2", 2, sets=[f"parallel.{PP}=2"])
    report.same_losses("a trace changes nothing", workspace.losses("pp2", 6), workspace.losses("plain", 6))
    report.check("without profile.enabled there is no trace", not os.path.exists(workspace.path("runs", "plain", "trace")))
    micros, steps = 4, END - FIRST
    for rank in range(2):
        trace = read_trace(workspace, "pp2", rank)
        problem = well_formed(trace)
        report.check(f"rank {rank}: events are well formed", not problem, problem)
        marks, operators, calls = names(trace, "user_annotation"), names(trace, "cpu_op"), names(trace, "collective")
        report.check(f"rank {rank}: the two steps", all(marks[f"step {s}"] == 1 for s in range(FIRST, END))
                     and sum(n.startswith("step ") for n in marks) == steps, f"{len(trace['traceEvents'])} events")
        want = expected_actions(rank, micros, steps)
        got = {n: c for n, c in marks.items() if not n.startswith("step ")}
        report.check(f"rank {rank}: every pipeline action of every step", got == want, f"{len(got)} names")
        report.check(f"rank {rank}: operators", operators["aten::mm"] + operators["aten::linear"] > 0
                     or any(n.startswith("aten::") for n in operators), f"{sum(operators.values())} spans")
        side = ["send activation.stage1", "recv gradient.stage0"] if rank == 0 else ["recv activation.stage1", "send gradient.stage0"]
        want_calls = {f"{op} pp.{what}.micro{m}": steps for op, what in (s.split(" ") for s in side) for m in range(micros)}
        got_calls = {n: c for n, c in calls.items() if " pp." in n}
        report.check(f"rank {rank}: every transfer by name", got_calls == want_calls, f"{sorted(got_calls)[:2]}...")
        report.check(f"rank {rank}: one sum of totals a step", calls["all_reduce step.totals"] == steps)
        launched = {n.rsplit(" #", 1)[0] for n in operators if " #" in n}
        report.check(f"rank {rank}: a host span for each call", set(calls) <= launched, f"{len(launched)}")


def check_sequence_numbers(report, workspace):
    """The flight recorder counts the calls of a group: in a trace no number is missing and none is there twice."""
    workspace.train("dp2", 2, sets=["parallel.zero_stage=1"])
    kinds = collections.Counter()
    for rank in range(2):
        numbers = collections.defaultdict(list)
        for event in read_trace(workspace, "dp2", rank)["traceEvents"]:
            if event.get("cat") == "collective" and event["ph"] == "b":
                numbers[event["args"]["group"]].append(event["args"]["seq"])
                kinds[event["args"]["group"] + " " + event["args"]["op"]] += 1
        dp = sorted(numbers["dp"])
        report.check(f"rank {rank}: every call of dp, as the flight recorder counts", dp and dp == list(range(dp[0], dp[0] + len(dp))),
                     f"{len(dp)} calls, {len(dp) // (END - FIRST)} a step")
        report.check(f"rank {rank}: as many calls in each step", len(dp) % (END - FIRST) == 0)
    report.check("gradients and parameters travel", kinds["dp reduce_scatter"] > 0 and kinds["dp all_gather"] > 0, str(dict(kinds)))


FORWARD_SITES = {"tp.qkv.x", "tp.attention_output.y", "tp.gate_up.x", "tp.down.y"}
BACKWARD_SITES = {"tp.column.x", "tp.column.dx", "tp.attention_output.dy", "tp.down.dy"}


def check_overlapped(report, workspace):
    """Both halves of an overlapped action are in the trace, though they run on two threads, and their calls alternate."""
    attentions, together = {}, {}
    for run, schedule in [("tp2", "1f1b"), ("tp2_overlapped", "dualpipev")]:
        workspace.train(run, 2, sets=[f"parallel.{TP}=2", f"parallel.pipeline_schedule={schedule}"])
        trace = read_trace(workspace, run, 0)
        problem = well_formed(trace)
        report.check(f"{run}: events are well formed", not problem, problem)
        attentions[run] = names(trace, "cpu_op")["aten::scaled_dot_product_attention"]
        # When a call ends depends on the other rank; when it begins, on the turns alone.
        begins = sorted((e for e in trace["traceEvents"] if e.get("cat") == "collective" and e["ph"] == "b"), key=lambda e: e["ts"])
        sites = [e["name"].split(" ")[1] for e in begins]
        backward = [site in BACKWARD_SITES for site in sites if site in FORWARD_SITES | BACKWARD_SITES]
        together[run] = sum(a != b for a, b in zip(backward, backward[1:]))
    report.check("overlapped: every forward is traced", attentions["tp2"] == attentions["tp2_overlapped"] > 0, str(attentions))
    report.check("overlapped: calls of forward and backward alternate", together["tp2_overlapped"] > 4 * together["tp2"], str(together))


def check_options(report, workspace):
    workspace.train("one", 2, sets=["profile.ranks=[1]", "profile.step_start=5", "profile.step_end=100"])
    report.check("only the ranks that are asked for", os.listdir(workspace.path("runs", "one", "trace")) == ["rank_0001.json"])
    marks = names(read_trace(workspace, "one", 1), "user_annotation")
    report.check("a trace that the end of training cuts is written", [n for n in marks if n.startswith("step ")] == ["step 5", "step 6"])
    for bad in ["profile.step_start=0", "profile.step_end=3", "profile.ranks=[-1]"]:
        done = hearth(["train", "config.yaml", "--dry-run", "--set", bad], workspace.folder, check=False)
        report.check(f"{bad} is refused", done.returncode == 3, f"code {done.returncode}")


def check_report(report, workspace):
    folder = workspace.path("runs", "pp2", "trace")
    done = hearth(["report", "--trace", folder, "--json", "--merged", "merged.json"], workspace.folder)
    result = json.loads(done.stdout)
    kinds = {row["kind"]: row for row in result["kinds"]}
    report.check("report: kinds", {"pp send/recv", "world all-reduce", "all"} <= set(kinds), str(sorted(kinds)))
    transfers = kinds["pp send/recv"]["calls"]
    report.check("report: as many transfers as in the traces", transfers == 2 * 2 * 4 * (END - FIRST), f"{transfers}")
    report.check("report: shares", all(0 <= row["share"] <= 1 and row["covered_ms"] <= row["time_ms"] for row in kinds.values()))
    report.check("report: ranks", [r["place"] for r in result["ranks"]] == ["pp0", "pp1"])
    merged = json.load(open(workspace.path("merged.json"), encoding="utf-8"))
    processes = [e["args"]["name"] for e in merged["traceEvents"] if e["name"] == "process_name"]
    report.check("report --merged: a process per rank", processes == ["rank 0 pp0 host", "rank 1 pp1 host"], str(processes))
    table = hearth(["report", "--trace", folder], workspace.folder).stdout
    report.check("report: the table", "pp send/recv" in table)
    print(table)
    for bad, code in [("absent", 4), ("config.yaml", 4), ("merged.json", 4)]:
        done = hearth(["report", "--trace", bad], workspace.folder, check=False)
        report.check(f"report --trace {bad}", done.returncode == code, f"code {done.returncode}")


def print_table(report, workspace, keep):
    workspace.write_config(**{f"model__{k}": v for k, v in MODEL.items()}, data__seq_length=SEQ_LENGTH, precision__dtype="bf16",
                           training__train_iters=8, training__global_batch_size=32, training__micro_batch_size=4,
                           profile__enabled=True, profile__step_start=5, profile__step_end=8)
    for name, layout in LAYOUTS.items():
        # Deterministic mode, which the fixture asks for on a GPU, is not what is measured.
        sets = [f"parallel.{key}={value}" for key, value in layout.items()] + ["training.deterministic_mode=false"]
        workspace.train(name, 4, sets=sets, timeout=300)
        folder = workspace.path("runs", name, "trace")
        result = json.loads(hearth(["report", "--trace", folder, "--json"], workspace.folder).stdout)
        events = read_trace(workspace, name, 0)["traceEvents"]
        kernels = [e for e in events if e.get("cat") == "kernel"]
        # Without kernels the report would silently be one of host calls: some sharing set-ups hide kernels from the profiler.
        report.check(f"{name}: kernels of calls and of compute on several streams",
                     any("site" in e["args"] for e in kernels) and any("site" not in e["args"] for e in kernels)
                     and len({e["tid"] for e in kernels}) > 1,
                     f"{len(kernels)} kernels on streams {sorted({e['tid'] for e in kernels})}; without a kernel: "
                     f"{dict(names({'traceEvents': events}, 'collective'))}")
        kinds = {row["kind"] for row in result["kinds"]}
        report.check(f"{name}: the expected kinds, each kernel with its call", EXPECTED[name] <= kinds and "unnamed" not in kinds,
                     str(sorted(kinds)))
        speed = workspace.metrics(name)[8]["tokens/s"]
        print(f"\n{name}: step 8 (not traced) at {speed} tokens/s")
        print(hearth(["report", "--trace", folder], workspace.folder).stdout, flush=True)
        print(json.dumps({"layout": name, "tokens/s": speed, "kinds": result["kinds"]}), flush=True)
        if keep:
            hearth(["report", "--trace", folder, "--merged", os.path.join(os.path.abspath(keep), f"{name}.json")], workspace.folder)
        shutil.rmtree(folder)


def main():
    report = Report()
    arguments = sys.argv[1:]
    keep = arguments[arguments.index("--keep") + 1] if "--keep" in arguments else None
    if keep:
        os.makedirs(keep, exist_ok=True)
    with Workspace(num_documents=3000 if "table" in arguments else 300) as workspace:
        if "table" in arguments:
            if device() != "cuda":
                sys.exit("trace.py table needs HEARTH_TEST_DEVICE=cuda")
            print_table(report, workspace, keep)
        else:
            check_two_ranks(report, workspace)
            check_sequence_numbers(report, workspace)
            check_overlapped(report, workspace)
            check_options(report, workspace)
            check_report(report, workspace)
    report.finish()


if __name__ == "__main__":
    main()
