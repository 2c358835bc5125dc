"""A rank that is killed, stopped, asleep, or leaves out one call: one page names it, and every rank ends with a code other
than zero, within the deadline and 5 s. The timing is the contract, so it is asserted.   hang.py [CASE...]
Needs no quiet machine: a step here takes milliseconds, the deadline is some hundred times that."""
import os
import re
import signal
import subprocess
import sys
import time

from fixture import MPIRUN, Report, Workspace, binary, device, train_arguments
from kill_loop import children, session_members

# A device loads its kernels and connects in the first steps, under the same deadline.
DEADLINE = 5 if device() == "cpu" else 15
GRACE = 5
FAULT_STEP = 6
CALL = r"\w+ '[\w.]+'( (to|from) rank \d+)? \(group \w+( of ranks [\d, -]+)?, call \d+, \d+ bytes \w+\)"
LAYOUTS = {
    "tp2 x dp2": (4, ["parallel.tensor_model_parallel_size=2"]),
    "pp2": (2, ["parallel.pipeline_model_parallel_size=2"]),
    "dp2": (2, []),
    "dp2, saving": (2, ["checkpoint.save_interval=3"]),
    # Two students, ranks 0 and 1, who share a teacher on ranks 2 and 3.
    "teacher": (4, ["objective.kind=distill", "objective.teacher=runs/taught", "objective.teacher_ranks=2", "objective.teacher_top_k=8",
                    "objective.teacher_parallel.pipeline_model_parallel_size=2"]),
}
GONE = [r"rank {v} does not answer ====", r"rank {v} \(host .*\) does not answer: its process {how}; its last finished call is {c}"]
MISSING = [r"rank {v} is missing ====", r"rank {v} \(host .*\) is alive, but in no call; its last finished call is {c}",
           r"rank {v} has (not entered|entered, but does not go on with) {c}", r"waiting  ranks? [\d, -]+: in {c} since"]
SKIPPED = [r"rank {v} is out of order", r"rank {v} skipped all_reduce 'step.totals'"]
# name: layout, rank, signal sent by the test, fault plan, exit code, lines of the page, where the deadline must pass first
CASES = {
    "kill": ("tp2 x dp2", 1, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "kill rank 0": ("tp2 x dp2", 0, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "stop": ("tp2 x dp2", 3, signal.SIGSTOP, "", 7, GONE, "is stopped .*", True),
    "sleep": ("tp2 x dp2", 2, None, "sleep@rank=2,step={s},point=data.next,ms=600000", 7, MISSING, "", True),
    "skip": ("tp2 x dp2", 1, None, "skip_collective@rank=1,step={s},point=allreduce.before", 7, SKIPPED, "", False),
    "pp kill": ("pp2", 1, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "pp stop": ("pp2", 1, signal.SIGSTOP, "", 7, GONE, "is stopped .*", True),
    "pp sleep": ("pp2", 1, None, "sleep@rank=1,step={s},point=allreduce.before,ms=600000", 7, MISSING, "", True),
    "pp skip": ("pp2", 1, None, "skip_collective@rank=1,step={s},point=allreduce.before", 7, SKIPPED, "", False),
    "dp kill": ("dp2", 1, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "dp stop": ("dp2", 1, signal.SIGSTOP, "", 7, GONE, "is stopped .*", True),
    "dp skip": ("dp2", 1, None, "skip_collective@rank=1,step={s},point=allreduce.before", 7, SKIPPED, "", False),
    "save": ("dp2, saving", 1, None, "sleep@rank=1,step={s},point=ckpt.begin,ms=600000", 7, MISSING, "", True),
    "teacher kill": ("teacher", 3, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "teacher stop": ("teacher", 2, signal.SIGSTOP, "", 7, GONE, "is stopped .*", True),
    "student kill": ("teacher", 1, signal.SIGKILL, "", 137, GONE, "has ended", False),
    "student sleep": ("teacher", 1, None, "sleep@rank=1,step={s},point=data.next,ms=600000", 7, MISSING, "", True),
    "exit": ("dp2", 1, None, "exit@rank=1,step={s},point=data.next,code=3", 3, GONE, "has ended", False),
}


def wait_for_step(workspace, run, step, process):
    """Returns when the run has logged `step`."""
    metrics = workspace.path("runs", run, "metrics.jsonl")
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() - begin < 120:
        if os.path.exists(metrics) and f'"step":{step}' in open(metrics, encoding="utf-8").read().replace(" ", ""):
            return
        time.sleep(0.01)


def wait_until_gone(process, seconds):
    begin = time.monotonic()
    while time.monotonic() - begin < seconds and (process.poll() is None or session_members(process.pid)):
        time.sleep(0.01)


def run_case(workspace, name, report):
    layout, victim, number, fault, code, lines, how, by_deadline = CASES[name]
    ranks, sets = LAYOUTS[layout]
    run = name.replace(" ", "_")
    # Ten steps a second, so that signals come in the middle of a run; a rank that the plan hits stops for good.
    plan = ";".join(filter(None, [fault.format(s=FAULT_STEP), "" if fault else "sleep@point=step.end,ms=100,every=1"]))
    stderr_path = workspace.path(f"{run}.txt")
    trouble = len(report.failed)
    with open(stderr_path, "w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [MPIRUN, str(ranks), binary(), *train_arguments(run, sets=[*sets, f"parallel.collective_timeout_s={DEADLINE}"])],
            cwd=workspace.folder, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HEARTH_FAULT": plan, "HEARTH_TEST_TIMEOUT": "200"})
    try:
        wait_for_step(workspace, run, FAULT_STEP - 1, process)
        begin = time.monotonic()
        if number is not None:
            running = children(process.pid)
            report.check(f"{name}: runs until rank {victim} gets its signal", victim < len(running), f"{len(running)} ranks")
            if victim < len(running):
                os.kill(running[victim], number)
        wait_until_gone(process, DEADLINE + GRACE + 30)
        seconds = time.monotonic() - begin
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
    text = open(stderr_path, encoding="utf-8", errors="replace").read()
    pages = re.findall(r"^==== the job does not go on.*?^====$", text, re.MULTILINE | re.DOTALL)
    report.check(f"{name} ({layout}): one page", len(pages) == 1, f"{len(pages)}")
    page = pages[0] if pages else ""
    for line in lines:
        pattern = line.format(v=victim, how=how, c=CALL)
        report.check(f"{name}: the page says {pattern[:60]}", re.search(pattern, page) is not None)
    report.check(f"{name}: code {code}", process.returncode == code, f"code {process.returncode}")
    report.check(f"{name}: over within the deadline and {GRACE} s", seconds <= DEADLINE + GRACE, f"{seconds:.1f} s")
    if by_deadline:
        report.check(f"{name}: not before the deadline", seconds >= DEADLINE, f"{seconds:.1f} s")
    file = workspace.path("runs", run, "log", "hang_report.txt")
    saved = open(file, encoding="utf-8").read().strip() if os.path.exists(file) else "missing"
    report.check(f"{name}: the page is in the run folder", saved == page)
    if len(report.failed) > trouble:
        # Over NCCL a line may name hundreds of pending calls.
        print("\n".join(line[:500] for line in text.splitlines()[-100:]), flush=True)


def pauses_and_good_runs(workspace, report):
    # A teacher waits for its students without a deadline: while they save, or read from a slow disk.
    ranks, sets = LAYOUTS["teacher"]
    done = workspace.train("patient", ranks, check=False, env={"HEARTH_FAULT": f"sleep@step=2,point=step.end,ms={1000 * DEADLINE + 2000}"},
                           sets=[*sets, "training.train_iters=3", f"parallel.collective_timeout_s={DEADLINE}"])
    report.check("students that pause longer than the deadline are no hang", done.returncode == 0, f"code {done.returncode}")
    # A run that ends well leaves nothing behind.
    workspace.train("good", 2, sets=["training.train_iters=5"])
    left = [n for n in (".hang", "log/hang_report.txt") if os.path.exists(workspace.path("runs", "good", n))]
    report.check("a good run leaves no trace", not left, str(left))


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config(training__train_iters=100000)
        workspace.train("taught", sets=["training.train_iters=1"])
        for name in sys.argv[1:] or CASES:
            run_case(workspace, name, report)
        if not sys.argv[1:]:
            pauses_and_good_runs(workspace, report)
    report.finish()


if __name__ == "__main__":
    main()
