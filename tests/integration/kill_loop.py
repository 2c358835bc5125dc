"""Row 9 of the foundation: kill -9 at random moments; every next run resumes from a valid checkpoint and the losses in
the end are those of a run that was never killed.   kill_loop.py [KILLS] [SEED]
Each kill hits mpirun (its ranks die with it), rank 0 or rank 1, some time between start-up and the end of the run."""
import os
import random
import re
import signal
import subprocess
import sys
import time

from fixture import MPIRUN, Report, Workspace, binary, hearth, train_arguments

RANKS, STEPS = 2, 60


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listing:
            return [int(word) for word in listing.read().split()]
    except OSError:
        return []


def session_members(session):
    """Living processes (zombies aside) of a session: what a killed job might have left behind."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry))
    return found


def start(workspace, run):
    return subprocess.Popen(
        [MPIRUN, str(RANKS), binary(), *train_arguments(run)],
        cwd=workspace.folder, stdout=subprocess.DEVNULL, stderr=open(workspace.path("stderr.txt"), "w"),
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_somebody(process, rng):
    ranks = children(process.pid)
    victims = [("mpirun", process.pid)] + [(f"rank {i}", pid) for i, pid in enumerate(ranks[:RANKS])]
    name, pid = rng.choice(victims)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return f"{name} (already gone)"
    return name


def wait_for_end(process):
    """Seconds until nothing of the job's session is left."""
    begin = time.monotonic()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pass
    while session_members(process.pid) and time.monotonic() - begin < 30:
        time.sleep(0.05)
    return time.monotonic() - begin


def usable_checkpoints(workspace, run, report):
    """Every committed checkpoint must verify; returns the newest step."""
    folder = workspace.path("runs", run, "checkpoints")
    steps = sorted(name for name in (os.listdir(folder) if os.path.isdir(folder) else []) if re.fullmatch(r"step_\d{8}", name))
    for name in steps:
        done = hearth(["checkpoint", "verify", os.path.join(folder, name)], workspace.folder, check=False)
        if done.returncode != 0:
            report.check(f"{run}/{name} verifies", False, done.stderr[-500:])
    return int(steps[-1][5:]) if steps else 0


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20261124
    rng = random.Random(seed)
    print(f"kills={kills} seed={seed}", flush=True)
    report = Report()
    with Workspace() as workspace:
        workspace.write_config(training__train_iters=STEPS, checkpoint__save_interval=5, model__hidden_size=192,
                               model__intermediate_size=512, data__seq_length=128)
        begin = time.monotonic()
        workspace.train("golden", RANKS)
        whole = time.monotonic() - begin
        golden = workspace.losses("golden", STEPS)
        print(f"an uninterrupted run takes {whole:.1f} s", flush=True)
        attempt = done_kills = 0
        while done_kills < kills:
            run = f"victim{attempt}"
            process = start(workspace, run)
            delay = rng.uniform(0.05, 0.7) * whole
            try:
                process.wait(timeout=delay)
                victim = None
            except subprocess.TimeoutExpired:
                victim = kill_somebody(process, rng)
            seconds = wait_for_end(process)
            left = session_members(process.pid)
            newest = usable_checkpoints(workspace, run, report)
            done_kills += victim is not None
            kill = done_kills if victim else "none"
            print(f"kill {kill}: {victim or 'finished first'} after {delay:.2f} s, newest step {newest}, gone in {seconds:.1f} s",
                  flush=True)
            report.check("no process is left", not left, str(left) if left else "")
            if victim is None:
                report.check(f"run {run} ended well", process.returncode == 0, f"code {process.returncode}")
                report.same_losses(f"run {run} = golden", workspace.losses(run, STEPS), golden)
                attempt += 1
        run = f"victim{attempt}"
        newest = usable_checkpoints(workspace, run, report)
        done = workspace.train(run, RANKS)
        report.same_losses(f"run {run} = golden", workspace.losses(run, STEPS), golden)
        # "Resumes": no step up to the newest checkpoint is computed a second time.
        redone = [int(s) for s in re.findall(r"\bstep=(\d+)/", done.stderr)]
        if newest and redone:
            report.check("the last run resumed", min(redone) > newest, f"first step {min(redone)}, checkpoint {newest}")
        leftovers = [n for n in os.listdir(workspace.path("runs", run, "checkpoints")) if n.startswith(("tmp.", "dead."))]
        report.check("no half-made folder is left", not leftovers, str(leftovers) if leftovers else "")
    report.finish()


if __name__ == "__main__":
    main()
