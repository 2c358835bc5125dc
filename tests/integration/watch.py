"""`hearth watch` as it is run: kill -9 at every arrow of a round, each followed by a restart, ends in one release in
which each source file is exactly once, with the link whole at every moment; a rejected candidate, a bad file, a
duplicate, a lost child, a killed watcher and SIGTERM.      watch.py [all]
`all`: also a kill after each single write of the state, adapters trained on conversations, and a round whose steps
run under mpirun. HEARTH_TEST_PROGRAM, where set, is what the steps are started with (`--program`)."""
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time

from fixture import MPIRUN, Report, Workspace, binary, hearth, to_yaml, write_corpus

# In the order of one round, as launch/watch/watch_loop.h has them.
POINTS = ["watch.base.exported", "watch.promote.link_made", "watch.base.linked", "watch.accept.copied", "watch.accept.recorded",
          "watch.accept.removed", "watch.state_written", "watch.plan", "watch.journal_written", "watch.ingest.bad_file",
          "watch.ingest.prepared", "watch.train.ended", "watch.export.ended", "watch.evaluate.ended", "watch.judged",
          "watch.promote.renamed", "watch.promote.link_made", "watch.promote.linked", "watch.prune.removed", "watch.round_ended"]

EXPERIMENT = {
    "model.init_from": "left to watch", "data.seq_length": 64,
    "training.train_iters": 1, "training.micro_batch_size": 2, "training.global_batch_size": 8, "training.eval_interval": 0,
    "training.seed": 3, "optimizer.lr": 1e-3, "optimizer.lr_warmup_iters": 2, "precision.dtype": "fp32",
    "checkpoint.save": "runs/unused", "checkpoint.save_interval": 4,
}


class Watched:
    """A base model, a workspace of `hearth watch` and its inbox."""

    def __init__(self, workspace, name, base, **changes):
        self.workspace, self.name = workspace, name
        self.inbox, self.work, self.serving = workspace.path(name, "inbox"), workspace.path(name, "work"), workspace.path(name, "live")
        os.makedirs(self.inbox)
        with open(workspace.path(name, "experiment.yaml"), "w", encoding="utf-8") as out:
            out.write(to_yaml(EXPERIMENT))
        section = {
            "experiment": workspace.path(name, "experiment.yaml"), "inbox": self.inbox, "workspace": self.work,
            "tokenizer": workspace.path("tokenizer"), "base_model": base, "serving": self.serving,
            "train_arguments": ["--device", "cpu"], "eval_arguments": ["--device", "cpu"],
            "trigger": {"min_new_bytes": 1000}, "settle_s": 0.2, "poll_interval_s": 0.05, "validation_fraction": 0.1,
            "old_validation": [workspace.path("shards/validation")], "max_forgetting": 0.05, "max_loss_increase": 0.0, **changes}
        self.config = workspace.path(name, "watch.yaml")
        with open(self.config, "w", encoding="utf-8") as out:
            json.dump({"watch": section}, out, indent=1)  # JSON is YAML

    def arguments(self):
        program = os.environ.get("HEARTH_TEST_PROGRAM")
        return ["watch", self.config, "--once", *(["--program", program] if program else [])]

    def run(self, fault="", check=False):
        return hearth(self.arguments(), self.workspace.folder, env={"HEARTH_FAULT": fault}, check=check, timeout=180)

    def start(self, fault=""):
        return subprocess.Popen([binary(), *self.arguments()], cwd=self.workspace.folder, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "HEARTH_FAULT": fault, "OMP_NUM_THREADS": "1"})

    def drop(self, name, text):
        """As an upload should be: under a name that is ignored, then renamed."""
        partial = os.path.join(self.inbox, f".{name}")
        with open(partial, "w", encoding="utf-8") as out:
            out.write(text)
        os.rename(partial, os.path.join(self.inbox, name))

    def served(self, report, when):
        """The release behind the link; every model file of it must be whole."""
        if not os.path.islink(self.serving):
            return None
        folder = os.path.realpath(self.serving)
        try:
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as text:
                json.load(text)
            for name in os.listdir(folder):
                if name.endswith(".safetensors"):
                    require_whole(os.path.join(folder, name))
        except (OSError, ValueError) as error:
            report.check(f"the link is whole {when}", False, str(error))
        return os.path.basename(folder)

    def events(self, kind=None):
        with open(os.path.join(self.work, "lineage.jsonl"), encoding="utf-8") as lines:
            events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["event"])]

    def lineage(self, *subject):
        done = hearth(["watch", "lineage", self.work, *subject, "--json"], self.workspace.folder)
        return json.loads(done.stdout)


def require_whole(path):
    """Raises ValueError unless the file is as long as its header says."""
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if os.path.getsize(path) != 8 + size + end:
        raise ValueError(f"{path} is torn")


def new_documents(workspace, first, count):
    """Lines of the language that the base model was trained on, behind those that it saw."""
    path = workspace.path("more.jsonl")
    if not os.path.exists(path):
        write_corpus(path, 1000)
    with open(path, encoding="utf-8") as lines:
        return "".join(lines.readlines()[first:first + count])


def noise(count):
    """Another language: a model that learns it forgets."""
    rng = random.Random(11)
    return "".join(json.dumps({"text": "".join(rng.choices("xyz0123456789#%", k=300))}) + "\n" for _ in range(count))


def train_base(workspace):
    workspace.write_config(training__train_iters=60, optimizer__lr_decay_iters=60)
    workspace.train("base", ranks=0, on="cpu")
    return workspace.path("runs/base")


def drop_everything(watched):
    workspace = watched.workspace
    watched.drop("monday.jsonl", new_documents(workspace, 300, 60))
    watched.drop("tuesday.jsonl", new_documents(workspace, 360, 60))
    watched.drop("monday-again.jsonl", new_documents(workspace, 300, 60))
    watched.drop("broken.jsonl", '{"text": "fine"}\n{"text": "cut sho\n')
    watched.drop("picture.png", "not text")


def check_round(report, watched, what):
    served = watched.served(report, f"after {what}")
    report.check(f"{what}: release 0001 is served", served == "0001", str(served))
    release = watched.lineage("0001")
    names = sorted(file["names"][0] for file in release["files"])
    good = len(names) == 2 and names[1] == "tuesday.jsonl" and names[0] in ("monday.jsonl", "monday-again.jsonl")
    report.check(f"{what}: each source file is in it once", good, str(names))
    for kind, count in {"file_accepted": 3, "file_duplicate": 1, "file_rejected": 2, "run_planned": 1, "ingested": 1, "trained": 1,
                        "exported": 1, "evaluated": 4, "promoted": 1, "rejected": 0}.items():
        got = len(watched.events(kind))
        report.check(f"{what}: {count} x {kind}", got == count, f"{got}")
    numbers = [event["seq"] for event in watched.events()]
    report.check(f"{what}: the journal has no gap", numbers == list(range(1, len(numbers) + 1)))
    rejected = sorted(os.listdir(os.path.join(watched.work, "rejected")))
    report.check(f"{what}: two files are kept with their reasons", len(rejected) == 4, str(rejected))
    report.check(f"{what}: the inbox is empty", os.listdir(watched.inbox) == [], str(os.listdir(watched.inbox)))
    with open(os.path.join(watched.serving, "hearth_lineage.json"), encoding="utf-8") as text:
        card = json.load(text)
    report.check(f"{what}: the release says where it is from", len(card["source_digests"]) == 2 and card["parent"] == "0000")


def killed_at_every_arrow(report, workspace, base):
    watched = Watched(workspace, "arrows", base)
    drop_everything(watched)
    for point in POINTS:
        done = watched.run(f"kill@point={point}")
        killed = done.returncode == -signal.SIGKILL
        report.check(f"killed at {point}", killed, "" if killed else f"code {done.returncode} {done.stderr[-300:]}")
        watched.served(report, f"after a kill at {point}")
    done = watched.run()
    report.check("then it finds nothing left to do", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-500:])
    check_round(report, watched, "killed at every arrow")
    return watched


def killed_at_every_write(report, workspace, base):
    watched = Watched(workspace, "writes", base)
    drop_everything(watched)
    for kills in range(100):
        done = watched.run("kill@point=watch.state_written")
        watched.served(report, f"after kill {kills}")
        if done.returncode != -signal.SIGKILL:
            break
    report.check("killed after every write of the state", done.returncode == 0 and kills > 10, f"{kills} kills")
    check_round(report, watched, "killed after every write")


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def checkpoints(watched, run):
    folder = os.path.join(watched.work, "runs", run, "checkpoints")
    return [name for name in (os.listdir(folder) if os.path.isdir(folder) else []) if name.startswith("step_")]


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listing:
            return [int(word) for word in listing.read().split()]
    except OSError:
        return []


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def stopped_while_training(report, watched):
    """A lost child, a killed watcher and SIGTERM during one training: it goes on from its checkpoints each time."""
    watched.drop("wednesday.jsonl", new_documents(watched.workspace, 420, 120))
    # Slow steps: a save is committed some steps after it began.
    done = watched.run("sleep@point=step.end,ms=100,every=1;kill@point=step.end,step=12")
    report.check("a child that is killed ends the watcher with 8", done.returncode == 8, f"code {done.returncode}")
    report.check("its message names the step and the signal", "the step 'train' of run 0002 was killed (signal 9)" in done.stderr)
    newest = len(checkpoints(watched, "0002"))
    report.check("the training had saved", newest > 0, str(newest))
    slow = "sleep@point=step.end,ms=200,every=1"
    process = watched.start(slow)
    metrics = os.path.join(watched.work, "runs", "0002", "log", "rank_0000.log")
    resumed = wait_for(lambda: children(process.pid) and os.path.exists(metrics) and "event=resumed" in open(metrics, encoding="utf-8").read())
    report.check("the next start resumes it", resumed)
    victims = children(process.pid)
    process.kill()
    process.wait()
    report.check("a killed watcher takes its child along", wait_for(lambda: not any(map(alive, victims)), 10), str(victims))
    process = watched.start(slow)
    wait_for(lambda: children(process.pid) and open(metrics, encoding="utf-8").read().count("event=resumed") > 1)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    report.check("SIGTERM saves and ends with 75", process.returncode == 75, f"code {process.returncode} {error[-120:]}")
    done = watched.run()
    report.check("the round ends", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-500:])
    report.check("release 0002 is served", watched.served(report, "after a stopped training") == "0002")
    report.check("it was trained once", len([e for e in watched.events("trained") if e["run"] == "0002"]) == 1)
    release = watched.lineage("0002")
    report.check("it has one file of its own and inherits two", (len(release["files"]), len(release["inherited"])) == (1, 2))


def rejected(report, watched):
    watched.drop("noise.jsonl", noise(120))
    done = watched.run()
    report.check("a worse candidate is no failure", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-500:])
    event = watched.events("rejected")
    report.check("it is rejected for what it forgot", len(event) == 1 and "forgot more than max_forgetting" in event[0]["reason"],
                 str([e["reason"] for e in event]))
    report.check("serving is untouched", watched.served(report, "after a rejection") == "0002")
    report.check("the candidate is kept aside", os.path.isdir(os.path.join(watched.work, "candidates", "0003")))
    file = watched.lineage("noise.jsonl")[0]
    report.check("its file is in no release", file["releases"] == [] and file["rejected"] == ["0003"], str(file["releases"]))
    watched.drop("late.jsonl", new_documents(watched.workspace, 300, 60))
    before = len(watched.events("trained"))
    watched.run(check=True)
    report.check("a duplicate is recorded and not trained on", len(watched.events("file_duplicate")) == 2 and
                 len(watched.events("trained")) == before)
    names = watched.lineage("tuesday.jsonl")[0]["releases"]
    report.check("the journal says which releases hold a file", names == ["0001", "0002"], str(names))


def alone(report, watched):
    process = watched.start("sleep@point=watch.plan,ms=4000")
    watched.drop("thursday.jsonl", new_documents(watched.workspace, 540, 60))
    wait_for(lambda: os.path.exists(os.path.join(watched.work, "run.lock")))
    done = watched.run()
    report.check("a second watcher ends with 10", done.returncode == 10, f"code {done.returncode}")
    process.kill()
    process.communicate()


def preferences_refused(report, workspace, base):
    watched = Watched(workspace, "pairs", base)
    with open(workspace.path("pairs", "experiment.yaml"), "w", encoding="utf-8") as out:
        out.write(to_yaml({**EXPERIMENT, "objective.kind": "dpo"}))
    done = watched.run()
    report.check("preferences are refused before anything is done", done.returncode == 3 and "objective.kind is dpo" in done.stderr and
                 not os.path.exists(watched.work), f"code {done.returncode}")


def conversations(report, workspace, base):
    """Supervised fine-tuning of adapters on packed conversations; the release is the merged model."""
    watched = Watched(workspace, "chats", base, replay=[], old_validation=[], max_loss_increase=0.0, prepare_arguments=[
        "--format", "messages", "--chat-template", workspace.path("chat.jinja"), "--pack-length", "64"])
    with open(workspace.path("chat.jinja"), "w", encoding="utf-8") as out:
        out.write("{% for m in messages %}{{ m['role'] }}: {% generation %}{{ m['content'] }}{% endgeneration %}\n{% endfor %}")
    with open(workspace.path("chats", "experiment.yaml"), "w", encoding="utf-8") as out:
        out.write(to_yaml({**EXPERIMENT, "objective.kind": "sft", "objective.lora_rank": 4, "optimizer.lr": 1e-2}))
    texts = [json.loads(line)["text"].split() for line in new_documents(workspace, 600, 200).splitlines()]
    chats = [{"messages": [{"role": "user", "content": " ".join(text[:5])}, {"role": "assistant", "content": " ".join(text[5:20])}]}
             for text in texts]
    watched.drop("chats.json", json.dumps(chats))
    watched.drop("plain.txt", "no conversation")
    done = watched.run()
    report.check("conversations: the round ends", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-500:])
    report.check("conversations: release 0001 is served", watched.served(report, "after conversations") == "0001",
                 str([event["reason"] for event in watched.events("rejected")]))
    report.check("conversations: plain text is put aside", len(watched.events("file_rejected")) == 1)


def under_mpirun(report, workspace, base):
    watched = Watched(workspace, "ranks", base, launcher=[MPIRUN, "2"])
    drop_everything(watched)
    done = watched.run("kill@point=step.end,step=6,rank=1")
    report.check("a lost rank stops the watcher", done.returncode not in (0, 75), f"{done.returncode}")
    process = watched.start("sleep@point=step.end,ms=200,every=1")
    job = lambda: [pid for launcher in children(process.pid) for pid in [launcher, *children(launcher)]]  # noqa: E731
    report.check("two ranks: the next start goes on", wait_for(lambda: len(job()) >= 3))
    victims = job()
    process.kill()
    process.wait()
    report.check("a killed watcher takes mpirun and its ranks along",
                 wait_for(lambda: not any(map(alive, victims)), 20), str(victims))
    done = watched.run()
    report.check("two ranks: the round ends", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-500:])
    check_round(report, watched, "two ranks")


def main():
    report = Report()
    with Workspace() as workspace:
        base = train_base(workspace)
        begin = time.monotonic()
        watched = killed_at_every_arrow(report, workspace, base)
        stopped_while_training(report, watched)
        rejected(report, watched)
        alone(report, watched)
        preferences_refused(report, workspace, base)
        if sys.argv[1:] == ["all"]:
            conversations(report, workspace, base)
            killed_at_every_write(report, workspace, base)
            under_mpirun(report, workspace, base)
        print(f"{time.monotonic() - begin:.0f} s", flush=True)
    report.finish()


if __name__ == "__main__":
    main()
