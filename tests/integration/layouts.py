"""Row 5 of the foundation: layout does not change the run.
1, 2 and 4 ranks and zero_stage 0 and 1 give one loss curve; two identical runs and stop + resume are bit-identical;
a resume on another number of ranks continues the same sample stream (the losses would jump if it did not)."""
import os
import signal
import subprocess
import time

from fixture import MPIRUN, Report, Workspace, binary, hearth, train_arguments

# Measured between correct formulations: 3e-7 after 20 steps and 8e-6 after 100; ten times that is a bug.
FIRST20, REST, STEPS, CUT = 2e-6, 5e-5, 100, 40


def run_until(workspace, run, ranks, steps):
    """A run that is cut at `steps`: the schedule's horizon stays (optimizer.lr_decay_iters is in the config)."""
    workspace.train(run, ranks, sets=[f"training.train_iters={steps}"])


def stop_by_signal(workspace, run, ranks, report):
    """USR1 to mpirun after some steps: the run saves at a step boundary and ends with code 75."""
    process = subprocess.Popen(
        [MPIRUN, str(ranks), binary(), *train_arguments(run)],
        cwd=workspace.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        # A step of a few milliseconds on a fast device would end the run before the notice comes.
        env={**os.environ, "OMP_NUM_THREADS": "1", "HEARTH_FAULT": "sleep@point=step.end,ms=20,every=1"})
    metrics = workspace.path("runs", run, "metrics.jsonl")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if os.path.exists(metrics) and open(metrics, encoding="utf-8").read().count("\n") >= 10:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    stderr = process.communicate(timeout=60)[1]
    done = len(workspace.metrics(run))
    report.check("USR1 ends the run with code 75", process.returncode == 75, f"code {process.returncode} after {done} steps")
    report.check("USR1 stops before the end", 0 < done < STEPS, f"{done} steps")
    if process.returncode != 75:
        print(stderr[-3000:])


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config()
        for name, ranks, zero in [("r1z0", 1, 0), ("r1z1", 1, 1), ("r2z0", 2, 0), ("r2z1", 2, 1), ("r4z0", 4, 0),
                                  ("r4z1", 4, 1)]:
            workspace.train(name, ranks, sets=[f"parallel.zero_stage={zero}"])
        base = workspace.losses("r1z0", STEPS)
        report.check("the loss falls", base[-1] < 0.8 * base[0], f"{base[0]:.4f} -> {base[-1]:.4f}")
        for name in ["r1z1", "r2z0", "r2z1", "r4z0", "r4z1"]:
            report.close_losses(f"{name} = r1z0", workspace.losses(name, STEPS), base, FIRST20, REST)

        two = workspace.losses("r2z1", STEPS)
        workspace.train("again", 2)
        report.same_losses("the same run again", workspace.losses("again", STEPS), two)

        run_until(workspace, "cut", 2, CUT)
        workspace.train("cut", 2)
        report.same_losses("stop + resume on 2 ranks", workspace.losses("cut", STEPS), two)

        stop_by_signal(workspace, "signal", 2, report)
        workspace.train("signal", 2)
        report.same_losses("USR1 + resume", workspace.losses("signal", STEPS), two)

        run_until(workspace, "wider", 2, CUT)
        workspace.train("wider", 4)
        wider = workspace.losses("wider", STEPS)
        report.same_losses("before the change of ranks", wider[:CUT], two[:CUT])
        report.close_losses("resume on 4 ranks after 2", wider, two, FIRST20, REST)
        report.check("tokens add up", workspace.metrics("wider")[STEPS]["consumed_tokens"]
                     == workspace.metrics("r2z1")[STEPS]["consumed_tokens"])

        done = workspace.train("r2z1", 2)
        report.same_losses("a finished run is left alone", workspace.losses("r2z1", STEPS), two)
        report.check("and says so quickly", done.returncode == 0)
        failed = hearth(["train", "config.yaml", "--set", "checkpoint.load=runs/absent", "--set", "checkpoint.save=runs/x"],
                        workspace.folder, ranks=2, check=False)
        report.check("a missing load path is an error", failed.returncode not in (0, 75), f"code {failed.returncode}")
    report.finish()


if __name__ == "__main__":
    main()
