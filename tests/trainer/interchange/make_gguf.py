#!/usr/bin/env python3
"""Makes GGUF files and what independent readers say of them: make_gguf.py OUT MODELS

OUT/blocks.gguf           one tensor of random blocks per type, named after it
OUT/blocks.<type>.f32     its values as the gguf package dequantises them
OUT/<model>.gguf          models of MODELS (make_models.py) as llama.cpp's converter stores them: names, permuted q and k
                          rows for llama only, rope_freqs.weight for llama3 scaling; OUT/<model>.hf is the source folder
OUT/llama_q8.gguf         the llama model with Q8_0 matrices
OUT/llama_q8.transformers.safetensors  that file as transformers reads it
"""
import json
import math
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import gguf  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
# Byte offsets of the fp16 scales within a block: random bits there would be infinities.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}


def random_blocks(name, rows, columns, rng):
    kind = gguf.GGMLQuantizationType[name]
    size, width = gguf.GGML_QUANT_SIZES[kind]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return gguf.quants.quantize(values, kind)
    blocks = rng.integers(0, 256, (rows * columns // size, width), dtype=np.uint8)
    for offset in SCALES[name]:
        scale = rng.standard_normal(len(blocks)).astype(np.float16)
        blocks[:, offset:offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, columns // size * width)


def write_blocks(out):
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(out / "blocks.gguf", "llama")
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        data = random_blocks(name, 6, 768, rng)
        writer.add_tensor(name, data, raw_dtype=kind)
        gguf.quants.dequantize(data, kind).astype("<f4").tofile(out / f"blocks.{name}.f32")
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weight, heads):
    """llama.cpp's order: RoPE rotates neighbours there, halves in HF."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config, rope):
    dim = config["head_dim"]
    frequencies = 1.0 / (rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)))
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    out = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < high:
            out.append(1)
        elif wavelength > low:
            out.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"])
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, dtype=np.float32)


NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{suffix}"


def write_model(source, target, quantise=None):
    config = json.loads((source / "config.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    rope = config["rope_parameters"]
    writer = gguf.GGUFWriter(target, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    for name, value in load_file(source / "model.safetensors").items():
        if arch == "llama" and ".q_proj." in name:
            value = permute(value, heads)
        if arch == "llama" and ".k_proj." in name:
            value = permute(value, kv)
        value = np.ascontiguousarray(value, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.F32
        if quantise and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = quantise
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config, rope))
    finish(writer)


def transformers_reading(folder, name):
    """q and k as transformers un-permutes them, by its own code."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="float32")
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()},
              folder / (name[:-5] + ".transformers.safetensors"))


def main():
    out, models = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    write_blocks(out)
    for name in ("llama", "llama_bias", "llama3", "qwen2", "qwen3", "mistral"):
        write_model(models / name, out / f"{name}.gguf")
    write_model(models / "llama", out / "llama_q8.gguf", gguf.GGMLQuantizationType.Q8_0)
    transformers_reading(out, "llama_q8.gguf")


if __name__ == "__main__":
    main()
