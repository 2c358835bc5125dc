"""A real model learns from conversations: SmolLM2-135M-Instruct (GGUF import) on Alpaca instructions in English and Chinese, all
weights and LoRA. The held-out loss of the answers falls in both languages; the merged export answers in transformers under
its own chat template with the tokens that `hearth generate --chat` gives, and stops at the end of its turn; the PEFT directory
of the adapters, read by PEFT, is the same model.
    finetune_chat.py [FOLDER]      FOLDER, or $HEARTH_TEST_DATA, holds alpaca_en_demo.json and alpaca_zh_demo.json
Ends with 77 (skipped) without the folder or the model."""
import json
import os
import pathlib
import sys
import tempfile

from finetune_smollm2 import fetch
from fixture import Report, device, hearth, to_yaml

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
STEPS, BATCH, SEQ = (200, 16, 512) if device() == "cuda" else (24, 4, 256)
# Some ten thousand trained tokens: far beyond noise (1e-6), far below what the data allows.
LEAST_FALL = 0.02
QUESTIONS = ["What is the capital of France?", "Give three tips for staying healthy.", "保持健康的三个提示。"]


def config(folder, name, **changes):
    flat = {"model.init_from": "model", "data.train": [{"path": f"{lang}/train"} for lang in ("en", "zh")], "data.seq_length": SEQ,
            "training.train_iters": STEPS, "training.micro_batch_size": min(BATCH, 4), "training.global_batch_size": BATCH,
            "training.seed": 11, "training.eval_interval": 0, "optimizer.lr_warmup_iters": 4, "optimizer.weight_decay": 0.0,
            "precision.dtype": "bf16" if device() == "cuda" else "fp32", "checkpoint.save": f"runs/{name}",
            "checkpoint.save_interval": 0, "objective.kind": "sft", **changes}
    pathlib.Path(folder, f"{name}.yaml").write_text(to_yaml(flat), encoding="utf-8")
    return f"{name}.yaml"


def held_out(folder, model, language):
    done = hearth(["eval", model, "--data", f"{language}/validation", "--json", "--device", device()], folder, threads=2, timeout=900)
    out = json.loads(done.stdout)
    return out["loss"], out["num_tokens"]


def check_training(report, folder, name, changes, before):
    hearth(["train", config(folder, name, **changes), "--device", device()], folder, threads=2, timeout=3000)
    for language, (loss, tokens) in before.items():
        after, same = held_out(folder, f"runs/{name}", language)
        report.check(f"{name}: held-out loss of the answers falls ({language})", same == tokens and after <= loss - LEAST_FALL,
                     f"{loss:.4f} -> {after:.4f} over {tokens} tokens")


def generations(folder, model):
    """Ids of the prompt and of the greedy answer, as hearth gives them."""
    out = []
    for question in QUESTIONS:
        done = hearth(["generate", model, "--chat", "--prompt", question, "--max-new-tokens", 48, "--json", "--device", "cpu",
                       "--dtype", "fp32"], folder, threads=2, timeout=600)
        answer = json.loads(done.stdout)
        out.append((answer["prompt_ids"], answer["ids"], answer["finish_reason"]))
    return out


def check_serving(report, folder, name):
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(2)
    hearth(["export", f"runs/{name}", "--output", f"served-{name}", "--dtype", "fp32"], folder, threads=2, timeout=600)
    directory = os.path.join(folder, f"served-{name}")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    stops = 0
    for question, (prompt, ids, finish) in zip(QUESTIONS, generations(folder, f"runs/{name}")):
        want = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True)["input_ids"]
        report.check(f"{name}: transformers' template gives hearth's prompt", list(want) == prompt, f"{len(prompt)} ids")
        with torch.no_grad():
            answer = model.generate(torch.tensor([want]), do_sample=False, max_new_tokens=48)[0, len(want):].tolist()
        report.check(f"{name}: transformers answers as hearth", answer == ids, repr(tokenizer.decode(answer))[:120])
        stops += finish == "stop" and answer[-1] == tokenizer.eos_token_id
    report.check(f"{name}: answers stop at the end of the turn", stops >= 1, f"{stops} of {len(QUESTIONS)} within 48 tokens")
    if "lora" not in name:
        return
    hearth(["export", f"runs/{name}", "--output", "peft", "--adapters", "--dtype", "fp32"], folder, threads=2, timeout=300)
    hearth(["export", "model", "--output", "base", "--dtype", "fp32"], folder, threads=2, timeout=300)
    base = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "base"), dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, os.path.join(folder, "peft")).eval()
    prompt = torch.tensor([generations(folder, f"runs/{name}")[0][0]])
    with torch.no_grad():
        got, want = adapted(prompt).logits, model(prompt).logits
    error = float((got - want).abs().max() / want.abs().max())
    # The merged weights were rounded once more, and W + BA is another order of sums than Wx + B(Ax).
    report.check(f"{name}: PEFT reads the adapters", error <= 2e-5, f"{error:.1e} of the largest logit")


def main():
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HEARTH_TEST_DATA", "none"))
    if not (source / "alpaca_en_demo.json").exists():
        print("no folder with alpaca_en_demo.json and alpaca_zh_demo.json")
        sys.exit(77)
    gguf = fetch("smollm2", "*.gguf")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="hearth-chat.") as folder:
        hearth(["import", gguf, "--output", "model"], folder, threads=2, timeout=300)
        for language in ("en", "zh"):
            done = hearth(["data", "prepare", source / f"alpaca_{language}_demo.json", "--format", "alpaca", "--tokenizer", "model/tokenizer",
                           "--pack-length", SEQ, "--validation-fraction", "0.05", "--output", language, "--seed", 3], folder, timeout=300)
            print(done.stdout.strip())
        before = {language: held_out(folder, "model", language) for language in ("en", "zh")}
        check_training(report, folder, "full", {"optimizer.lr": 2e-5, "optimizer.min_lr": 2e-6}, before)
        check_training(report, folder, "lora", {"optimizer.lr": 5e-4, "optimizer.min_lr": 5e-5, "objective.lora_rank": 16,
                                                "objective.lora_alpha": 32}, before)
        check_serving(report, folder, "full")
        check_serving(report, folder, "lora")
    report.finish()


if __name__ == "__main__":
    main()
