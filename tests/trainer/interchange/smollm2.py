#!/usr/bin/env python3
"""A real model through the whole program: `hearth import` of SmolLM2-135M-Instruct (GGUF, Q4_1 and Q8_0 blocks) and
`hearth export`, against the gguf package and transformers. HEARTH_BINARY names the program. Ends with 77 (skipped) where
the model is not in the cache and cannot be fetched.

1. Every exported tensor equals gguf's dequantisation bit for bit, q and k rows put back by numpy.
2. transformers computes from the export the logits, log-probability and greedy tokens that were recorded for this model.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

# Recorded from transformers on the same GGUF file, fp32.
PROMPT = "The capital of France is"
PROMPT_IDS = [504, 3575, 282, 4649, 314]
GREEDY = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33]
TOP_LOGITS = {7042: 17.3713, 260: 14.8886, 4528: 13.2450, 2250: 13.0095, 1315: 12.9515}
LOGPROB = -0.258073
CHAT = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
CHAT_ANSWER = "The capital of France is Paris.<|im_end|>"


def fetch():
    root = pathlib.Path(__file__).resolve().parents[3]
    folder = pathlib.Path(os.environ.get("HEARTH_CACHE", pathlib.Path.home() / ".cache/hearth")) / "artefacts/smollm2"
    subprocess.run([root / "tests/fetch_artefacts.sh", "smollm2"], check=False)
    found = sorted(folder.glob("*.gguf"))
    if not found:
        print("smollm2 is not in the cache and cannot be fetched")
        sys.exit(77)
    return found[0]


def hearth(*arguments):
    subprocess.run([os.environ["HEARTH_BINARY"], *map(str, arguments)], check=True, stdout=sys.stderr)


def unpermute(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


HF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
            "token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def check_tensors(path, export):
    exported = load_file(export / "model.safetensors")
    heads = {"attn_q": 9, "attn_k": 3}
    for tensor in gguf.GGUFReader(path).tensors:
        *block, part, _ = tensor.name.split(".")
        name = (f"model.layers.{block[1]}." if block else "") + HF_NAMES[part] + ".weight"
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if part in heads:
            want = unpermute(want, heads[part])
        got = exported.pop(name)
        assert got.dtype == np.float32 and np.array_equal(got, want), name
    assert not exported, sorted(exported)


def check_logits(export):
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(export, dtype="auto").eval()
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) == 134_515_008
    tokenizer = AutoTokenizer.from_pretrained(export)
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    assert ids[0].tolist() == PROMPT_IDS, ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1].double()
    for token, want in TOP_LOGITS.items():
        assert abs(logits[token].item() - want) <= 1e-4, (token, logits[token].item(), want)  # recorded to 4 decimals
    assert abs(torch.log_softmax(logits, -1)[7042].item() - LOGPROB) <= 1e-5

    def greedy(prompt, count):
        mask = torch.ones_like(prompt)
        return model.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False)[0, prompt.shape[1]:].tolist()

    assert greedy(ids, 12) == GREEDY
    chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
    assert chat.shape[1] == 42, chat
    answer = tokenizer.decode(greedy(chat, 40))  # ends by itself at <|im_end|>
    assert answer == CHAT_ANSWER, answer


def main():
    path = fetch()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, export = pathlib.Path(folder, "checkpoint"), pathlib.Path(folder, "export")
        hearth("import", path, "--output", checkpoint)
        hearth("export", checkpoint, "--output", export)
        check_tensors(path, export)
        check_logits(export)
    print("272 tensors bit-equal; logits, greedy tokens and chat answer as recorded")


if __name__ == "__main__":
    main()
