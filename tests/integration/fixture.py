"""What the integration tests share: a small corpus, a tokenizer and shards made by hearth itself, experiment files,
and runs of the real program under mpirun. Run as a program it leaves all that in a folder for shell tests:
    fixture.py FOLDER [section.key=value ...]     -> FOLDER/{docs.jsonl,tokenizer,shards,config.yaml}
Everything is seeded; nothing outside the folder is written."""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MPIRUN = os.path.join(REPOSITORY, "tests", "mpirun.sh")
VOCAB_SIZE = 512

# A model that starts in a second and still has everything: grouped queries, tied head, several layers.
# The rate is one at which the gradient norm stays near 1: at 3e-3 it reaches 3 and amplifies rounding tenfold.
BASE_CONFIG = {
    "model.family": "llama", "model.vocab_size": VOCAB_SIZE, "model.hidden_size": 64, "model.intermediate_size": 160,
    "model.num_hidden_layers": 2, "model.num_attention_heads": 4, "model.num_key_value_heads": 2,
    "model.max_position_embeddings": 256, "model.tie_word_embeddings": True,
    "data.train": [{"path": "shards/train"}], "data.validation": [{"path": "shards/validation"}],
    "data.seq_length": 64,
    "training.train_iters": 100, "training.micro_batch_size": 2, "training.global_batch_size": 8,
    "training.seed": 17, "training.eval_interval": 0,
    "optimizer.lr": 1e-3, "optimizer.min_lr": 1e-4, "optimizer.lr_decay_style": "cosine",
    "optimizer.lr_warmup_iters": 10, "optimizer.lr_decay_iters": 100, "optimizer.clip_grad": 1.0,
    "precision.dtype": "fp32",
    "checkpoint.save": "runs/base", "checkpoint.save_interval": 0,
}

# Changes that leave the shape to model.preset or model.init_from.
NO_SHAPE = {key.replace(".", "__"): None for key in BASE_CONFIG if key.startswith("model.")}


def binary():
    return os.path.abspath(os.environ["HEARTH_BINARY"])


def device():
    """cpu, or cuda where tests/gpu.sh asks for it."""
    return os.environ.get("HEARTH_TEST_DEVICE", "cpu")


def train_arguments(run, config="config.yaml", sets=(), on=None):
    """Arguments of `hearth train` into runs/RUN. On a GPU bit-for-bit claims hold in deterministic mode."""
    on = on or device()
    sets = [f"checkpoint.save=runs/{run}", *(["training.deterministic_mode=true"] if on == "cuda" else []), *sets]
    return ["train", config, "--device", on] + [word for item in sets for word in ("--set", item)]


def write_corpus(path, num_documents=300, seed=5):
    """Sentences over a small vocabulary whose next word depends on the last one, so that there is something to learn."""
    rng = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ren", "tu", "sho", "ve", "an", "qui", "der", "\u4e16\u754c", "\u706b"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(200)]
    follow = {w: rng.choices(words, k=4) for w in words}
    with open(path, "w", encoding="utf-8") as out:
        for _ in range(num_documents):
            word, text = rng.choice(words), []
            for _ in range(rng.randint(10, 150)):
                text.append(word + (".\n" if rng.random() < 0.08 else ""))
                word = rng.choice(follow[word]) if rng.random() < 0.9 else rng.choice(words)
            out.write(json.dumps({"text": " ".join(text)}, ensure_ascii=False) + "\n")


def to_yaml(flat):
    """{"model.family": "llama", ...} as YAML text; lists and dicts in flow style, which JSON is."""
    sections = {}
    for key, value in flat.items():
        section, name = key.split(".", 1)
        sections.setdefault(section, []).append(f"  {name}: {json.dumps(value)}")
    return "".join(f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def hearth(arguments, cwd, ranks=0, env=None, timeout=120, check=True, threads=1):
    """Runs hearth, under mpirun where ranks > 0. Returns the CompletedProcess with text output."""
    command = ([MPIRUN, str(ranks)] if ranks else []) + [binary(), *map(str, arguments)]
    full_env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HEARTH_TEST_TIMEOUT": str(timeout), **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=full_env, timeout=timeout + 30, text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        sys.exit(f"FAILED ({done.returncode}): {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done


class Workspace:
    """A temporary folder with corpus, tokenizer and shards; the working directory of every run. `corpus` is a file of
    {"text": ...} lines to take instead of made-up sentences."""

    def __init__(self, folder=None, num_documents=300, corpus=None, vocab_size=VOCAB_SIZE):
        self.keep = folder is not None
        self.folder = folder or tempfile.mkdtemp(prefix="hearth-integration.")
        os.makedirs(self.folder, exist_ok=True)
        if corpus:
            shutil.copyfile(corpus, self.path("docs.jsonl"))
        else:
            write_corpus(self.path("docs.jsonl"), num_documents)
        hearth(["data", "train-tokenizer", "docs.jsonl", "--vocab-size", vocab_size, "--output", "tokenizer"], self.folder)
        hearth(["data", "prepare", "docs.jsonl", "--tokenizer", "tokenizer", "--output", "shards",
                "--validation-fraction", "0.05", "--seed", "7"], self.folder)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write_config(self, name="config.yaml", **changes):
        """Changes are given as section__key=value; a value of None drops the key."""
        flat = dict(BASE_CONFIG)
        for key, value in changes.items():
            key = key.replace("__", ".", 1)
            flat.pop(key, None)
            if value is not None:
                flat[key] = value
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(to_yaml(flat))
        return name

    def train(self, run, ranks=1, config="config.yaml", sets=(), on=None, **kwargs):
        return hearth(train_arguments(run, config, sets, on), self.folder, ranks=ranks, **kwargs)

    def metrics(self, run):
        """{step: metrics line} of the training steps in runs/RUN/metrics.jsonl."""
        found = {}
        with open(self.path("runs", run, "metrics.jsonl"), encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if "lm loss" in entry:
                    if entry["step"] in found:
                        sys.exit(f"FAILED: {run}/metrics.jsonl has step {entry['step']} twice")
                    found[entry["step"]] = entry
        return found

    def losses(self, run, last_step):
        """Losses of steps 1..last_step, exactly as printed."""
        found = self.metrics(run)
        missing = [s for s in range(1, last_step + 1) if s not in found]
        if missing or len(found) != last_step:
            sys.exit(f"FAILED: {run} should have steps 1..{last_step}, misses {missing[:5]}, has {len(found)}")
        return [found[s]["lm loss"] for s in range(1, last_step + 1)]


class Report:
    """Collects named comparisons, prints each with its numbers, and ends the test with 1 if one failed."""

    def __init__(self):
        self.failed = []

    def check(self, name, holds, detail=""):
        print(f"{'ok  ' if holds else 'FAIL'} {name}{': ' if detail else ''}{detail}", flush=True)
        if not holds:
            self.failed.append(name)

    def close_losses(self, name, got, want, first20, rest):
        """Largest relative difference over the first 20 steps and over all; NaN fails."""
        differences = [abs(g - w) / abs(w) for g, w in zip(got, want)]
        early, late = max_or_nan(differences[:20]), max_or_nan(differences)
        self.check(name, len(got) == len(want) and early <= first20 and late <= rest,
                   f"20 steps {early:.2e} (<= {first20:.0e}), all {len(want)} {late:.2e} (<= {rest:.0e})")

    def same_losses(self, name, got, want):
        first = next((i + 1 for i, (g, w) in enumerate(zip(got, want)) if g != w), None)
        self.check(name, got == want, "bit-identical" if got == want else f"first difference at step {first}")

    def finish(self):
        if self.failed:
            sys.exit(f"{len(self.failed)} failed: {', '.join(self.failed)}")


def max_or_nan(values):
    return float("nan") if any(v != v for v in values) else max(values)


if __name__ == "__main__":
    workspace = Workspace(sys.argv[1])
    changed = dict(item.split("=", 1) for item in sys.argv[2:])
    workspace.write_config(**{k.replace(".", "__", 1): json.loads(v) for k, v in changed.items()})
