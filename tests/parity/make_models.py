#!/usr/bin/env python3
"""Makes small randomly initialised Hugging Face models of every family Hearth knows, and what transformers says of them.

    make_models.py OUT [--only NAME ...]

OUT/<name>/                      an HF directory: config.json, safetensors, and for some models a tokenizer
OUT/<name>.reference.safetensors what transformers computed in fp32 (fp32 weights widened where the model is bf16):
    input_ids  I64 [2, 40]       logits F32 [2, 40, vocab]
    loss       F32 [1]           mean cross entropy in nats of predicting input_ids[:, 1:]
    prompt     I64 [8]           greedy I64 [12]: the tokens that greedy decoding appends to the prompt
    grad.<parameter>             F32, d loss / d parameter, HF names; a tied head has none of its own

Everything depends on the fixed seeds below only. Shapes are awkward on purpose: vocabularies that no power of two
divides, 14 query heads over 2, 9 over 3, heads * head_dim != hidden_size. Biases and norm weights are randomised, so
that a forgotten one shows. Needs torch, transformers, tokenizers, safetensors; opens no socket.
"""
import argparse
import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config  # noqa: E402
from transformers.utils import logging  # noqa: E402

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # 32, so that with 40 positions some wavelengths are kept, some scaled and some in between.
    "original_max_position_embeddings": 32,
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def common(**changes):
    """Keys shared by all models. initializer_range is near 1/sqrt(hidden), so that logits are of order one."""
    keys = dict(
        num_hidden_layers=3,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=None,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    keys.update(changes)
    return keys


def configs():
    return {
        "llama": LlamaConfig(
            **common(
                vocab_size=517, hidden_size=96, intermediate_size=168, num_attention_heads=4, num_key_value_heads=2,
                rms_norm_eps=1e-5, tie_word_embeddings=False, eos_token_id=[2, 3],
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        ),
        "llama_bias": LlamaConfig(
            **common(
                vocab_size=391, hidden_size=64, intermediate_size=104, num_attention_heads=4, num_key_value_heads=4,
                rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=True,
                rope_parameters={"rope_type": "default", "rope_theta": 25000.0},
            )
        ),
        "llama3": LlamaConfig(
            **common(
                vocab_size=1003, hidden_size=128, intermediate_size=200, num_attention_heads=8, num_key_value_heads=2,
                rms_norm_eps=1e-5, tie_word_embeddings=False,
                rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0},
            )
        ),
        "qwen2": Qwen2Config(
            **common(
                vocab_size=771, hidden_size=112, intermediate_size=152, num_attention_heads=14, num_key_value_heads=2,
                rms_norm_eps=1e-6, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            )
        ),
        "qwen3": Qwen3Config(
            **common(
                vocab_size=643, hidden_size=64, intermediate_size=120, num_attention_heads=6, num_key_value_heads=2,
                head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            )
        ),
        "mistral": MistralConfig(
            **common(
                vocab_size=389, hidden_size=96, intermediate_size=136, num_attention_heads=4, num_key_value_heads=1,
                head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=None,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            )
        ),
        "smollm": LlamaConfig(
            **common(
                vocab_size=523, hidden_size=144, intermediate_size=184, num_attention_heads=9, num_key_value_heads=3,
                rms_norm_eps=1e-5, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            )
        ),
    }


def randomise(model, generator):
    """Norm weights in [0.5, 1.5], biases of the size of activations; matrices keep their normal initialisation."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(model.config.initializer_range * torch.randn(parameter.shape, generator=generator))


def build(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32).eval()
    randomise(model, torch.Generator().manual_seed(seed))
    model.generation_config.do_sample = False
    return model


def reference(model, seed):
    """Logits, loss, gradients and greedy tokens of `model`, widened to fp32."""
    model = model.to(torch.float32)
    generator = torch.Generator().manual_seed(seed + 1)
    vocab = model.config.vocab_size
    ids = torch.randint(0, vocab, (2, 40), generator=generator)
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
    model.zero_grad(set_to_none=True)
    loss.backward()
    out = {"input_ids": ids, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        out["grad." + name] = parameter.grad.detach().contiguous()
    prompt = torch.randint(0, vocab, (8,), generator=generator)
    sequence = prompt.clone()
    with torch.no_grad():
        for _ in range(12):
            next_logits = model(input_ids=sequence[None], use_cache=False).logits[0, -1]
            sequence = torch.cat([sequence, next_logits.argmax().reshape(1)])
    out["prompt"], out["greedy"] = prompt, sequence[len(prompt):].contiguous()
    return out


def tokenizer_files(folder):
    """A byte-level BPE of 380 entries over a fixed text, with ChatML tokens at ids 0..3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([__doc__] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def to_v4(folder):
    """Rewrites config.json in the form of transformers 4: rope_theta and rope_scaling at the top, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "default":
        config["rope_scaling"] = None
    else:
        rope["type"] = rope["rope_type"]
        config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(config, indent=2) + "\n")


def save(model, folder, **options):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, **options)


def variants(model, name, out):
    """Other ways to store the same weights, for the readers: sharded, bf16, old config keys, pickled."""
    if name == "llama":
        save(model, out / "llama_sharded", max_shard_size="150KB")
        save(model, out / "llama_bin")
        (out / "llama_bin" / "model.safetensors").unlink()
        torch.save(model.state_dict(), out / "llama_bin" / "pytorch_model.bin")
    if name in ("llama3", "qwen2"):
        save(model, out / f"{name}_v4")
        to_v4(out / f"{name}_v4")
    if name == "qwen3":
        save(model.to(torch.bfloat16), out / "qwen3_bf16")
        # Loaded anew in fp32: widening the bf16 object would keep its rotary frequencies rounded to bf16.
        widened = AutoModelForCausalLM.from_pretrained(
            out / "qwen3_bf16", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        save_file(reference(widened, seed_of("qwen3")), out / "qwen3_bf16.reference.safetensors")


def seed_of(name):
    return 1000 + sorted(configs()).index(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", choices=sorted(configs()), help="a subset of the families")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # reductions in one order on every machine
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    for name, config in configs().items():
        if arguments.only and name not in arguments.only:
            continue
        model = build(config, seed_of(name))
        folder = arguments.out / name
        save(model, folder)
        if name in ("llama", "qwen3", "smollm"):
            tokenizer_files(folder)
        save_file(reference(model, seed_of(name)), arguments.out / f"{name}.reference.safetensors")
        variants(model, name, arguments.out)
        print(name, sum(p.numel() for p in model.parameters()), flush=True)


if __name__ == "__main__":
    main()
