"""Fine-tuning and distillation on one GPU: LoRA rank 16 on all linears (1B 2048 x 4, 8B 2048 x 2; 8B on NF4) and online distillation
8B -> 1B (2048 x 4, forward KL at temperature 2, states in bf16 as the peers keep them), as a user runs them: real text, an optimizer step every
global batch, median over steps after a warm-up. Weights are random. One JSON line each; with
--profile the kernels of a step too.     gpu_finetune.py [--profile] [NAME ...]"""
import collections
import json
import os
import statistics
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
from fixture import NO_SHAPE, REPOSITORY, Workspace, hearth  # noqa: E402

WARM_UP, STEPS, SEQ = 5, 20, 2048
BF16_STATES = {"precision__main_params_dtype": "none", "precision__main_grads_dtype": "bf16", "precision__exp_avg_dtype": "bf16", "precision__exp_avg_sq_dtype": "bf16"}
LORA = {"objective__lora_rank": 16, "objective__lora_alpha": 32}
DISTILL = {"objective__kind": "distill", "objective__kd_alpha": 1.0, "objective__logit_kl_temperature": 2.0}
CASES = {  # student, teacher, micro-batch, changes
    "lora_1b": ("llama-1b", None, 4, {**LORA, **BF16_STATES}),
    "lora_1b_fp32_states": ("llama-1b", None, 4, LORA),
    "lora_8b": ("llama-3-8b", None, 2, {**LORA, **BF16_STATES}),
    "qlora_8b": ("llama-3-8b", None, 2, {**LORA, **BF16_STATES, "objective__quantize_base": "nf4"}),
    "kd_8b_1b": ("llama-1b", "llama-3-8b", 4, {**DISTILL, **BF16_STATES}),
    "kd_8b_1b_fp32_states": ("llama-1b", "llama-3-8b", 4, DISTILL),
}


def shape_of(preset):
    """The flat keys of a preset; RoPE scaling changes no speed."""
    with open(os.path.join(REPOSITORY, "configs", "models", f"{preset}.yaml"), encoding="utf-8") as file:
        pairs = [line.split(": ", 1) for line in file if ": " in line and line[0] != "#" and "{" not in line]
    return {key: json.loads(value) for key, value in pairs if key != "family"}


def write_model(workspace, preset):
    """A directory as transformers writes it, with random bf16 weights made on the device; the corpus' tokenizer beside them."""
    folder = workspace.path(preset)
    if os.path.isdir(folder):
        return preset
    os.makedirs(folder)
    s = shape_of(preset)
    width = s.get("head_dim") or s["hidden_size"] // s["num_attention_heads"]
    q, kv = s["num_attention_heads"] * width, s["num_key_value_heads"] * width
    tensors = {"model.embed_tokens.weight": (s["vocab_size"], s["hidden_size"]), "model.norm.weight": (s["hidden_size"],)}
    if not s.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = (s["vocab_size"], s["hidden_size"])
    for layer in range(s["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        tensors.update({p + "input_layernorm.weight": (s["hidden_size"],), p + "post_attention_layernorm.weight": (s["hidden_size"],),
                        p + "self_attn.q_proj.weight": (q, s["hidden_size"]), p + "self_attn.k_proj.weight": (kv, s["hidden_size"]),
                        p + "self_attn.v_proj.weight": (kv, s["hidden_size"]), p + "self_attn.o_proj.weight": (s["hidden_size"], q),
                        p + "mlp.gate_proj.weight": (s["intermediate_size"], s["hidden_size"]),
                        p + "mlp.up_proj.weight": (s["intermediate_size"], s["hidden_size"]),
                        p + "mlp.down_proj.weight": (s["hidden_size"], s["intermediate_size"])})
    header, offset = {}, 0
    for name, dims in tensors.items():
        size = 2 * torch.Size(dims).numel()
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as out:
        out.write((len(text) + (-len(text) % 8)).to_bytes(8, "little") + text + b" " * (-len(text) % 8))
        for dims in tensors.values():
            value = torch.ones(dims, device="cuda") if len(dims) == 1 else torch.randn(dims, device="cuda").mul_(0.02)
            out.write(value.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    config = {**{k: s[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                   "num_key_value_heads", "max_position_embeddings", "rope_theta", "rms_norm_eps") if k in s},
              "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": width, "hidden_act": "silu",
              "tie_word_embeddings": bool(s.get("tie_word_embeddings")), "torch_dtype": "bfloat16"}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as out:
        json.dump(config, out)
    for name in os.listdir(workspace.path("tokenizer")):
        with open(workspace.path("tokenizer", name), "rb") as source, open(os.path.join(folder, name), "wb") as out:
            out.write(source.read())
    torch.cuda.empty_cache()
    return preset


def widen_tokenizer(workspace, size):
    """The corpus' tokenizer with as many entries as the models have rows, so that a distillation's vocabulary is a whole one."""
    path = workspace.path("tokenizer", "tokenizer.json")
    with open(path, encoding="utf-8") as file:
        tokenizer = json.load(file)
    known = len(tokenizer["model"]["vocab"])
    first = max(max(tokenizer["model"]["vocab"].values()) + 1, *(t["id"] + 1 for t in tokenizer["added_tokens"]), known)
    tokenizer["model"]["vocab"].update({f"<unused_{i}>": i for i in range(first, size)})
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tokenizer, file)
    hearth(["data", "prepare", "docs.jsonl", "--tokenizer", "tokenizer", "--output", "wide", "--seed", "7"], workspace.folder)


def measure(workspace, name, profile=False):
    student, teacher, micro, changes = CASES[name]
    changes = NO_SHAPE | changes
    if teacher:
        changes["objective__teacher"] = write_model(workspace, teacher)
    # Windows of one document each, as the peers' causal mask.
    changes.update(data__train=[{"path": "wide"}], model__init_from=write_model(workspace, student), data__seq_length=SEQ, data__reset_attention_mask=False,
                   data__validation=[], training__micro_batch_size=micro, training__global_batch_size=micro,
                   training__train_iters=WARM_UP + STEPS, precision__dtype="bf16", optimizer__lr_warmup_iters=10,
                   optimizer__lr_decay_iters=1000, optimizer__lr=1e-4, optimizer__min_lr=1e-5)
    config = workspace.write_config(f"{name}.yaml", **changes)
    traced = ["profile.enabled=true", f"profile.step_start={WARM_UP + STEPS - 1}", f"profile.step_end={WARM_UP + STEPS + 1}"] if profile else []
    done = hearth(["train", config, "--device", "cuda"] + [word for item in [f"checkpoint.save=runs/{name}", *traced] for word in ("--set", item)],
                  workspace.folder, ranks=1, timeout=300)
    metrics = workspace.metrics(name)
    rates = [m["tokens/s"] for step, m in sorted(metrics.items()) if WARM_UP < step < WARM_UP + STEPS - 2]
    peak = next((int(word.split("=")[1]) for word in done.stderr.split() if word.startswith("peak_memory_bytes=")), 0)
    if profile:
        kernel_shares(workspace, name)
    print(json.dumps({"case": name, "seq": SEQ, "micro_batch": micro, "tokens_per_s": round(statistics.median(rates)),
                      "peak_gib": round(peak / 2**30, 2), "lm_loss": metrics[WARM_UP + STEPS]["lm loss"]}), flush=True)


def kernel_shares(workspace, name):
    """Where the time of two traced steps goes, by kernel, in ms a step."""
    with open(workspace.path("runs", name, "trace", "rank_0000.json"), encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    total = collections.Counter()
    for event in kernels:
        name_of = event["name"].replace("(anonymous namespace)::", "").replace("void ", "")
        total[name_of.split("<")[0].split("(")[0][-60:]] += event["dur"] / 2000
    begin, end = min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels)
    print(f"{name}: {sum(total.values()):.1f} ms of kernels a step in {(end - begin) / 2000:.1f} ms")
    for kernel, milliseconds in total.most_common(24):
        print(f"  {milliseconds:8.2f}  {kernel}")


def main():
    with Workspace(num_documents=4000) as workspace:
        widen_tokenizer(workspace, shape_of("llama-1b")["vocab_size"])
        names = [name for name in sys.argv[1:] if name != "--profile"]
        for name in names or CASES:
            measure(workspace, name, "--profile" in sys.argv)


if __name__ == "__main__":
    main()
