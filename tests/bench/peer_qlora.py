"""QLoRA as PEFT and bitsandbytes document it, beside tests/bench/gpu_finetune.py qlora_8b: random weights and tokens, NF4 with
double quantisation on the seven linears of every layer, rank 16, adapters in bf16, fused AdamW, gradient clipped, no recompute.
    peer_qlora.py MODEL SEQ MBS [liger]      MODEL: 1b | 8b; liger: Liger's fused linear cross entropy       -> one JSON line"""
import json
import statistics
import sys
import time

import bitsandbytes as bnb
import peft
import torch
import transformers

SHAPES = {"1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192},
          "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336}}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP, STEPS = 5, 20


def quantised(linear):
    new = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
                            compress_statistics=True, device="meta")
    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new)
    return new.to("cuda")


def make_model(shape, seq):
    """Random bf16 weights, quantised layer by layer: the whole model in bf16 never lies on the device beside the codes for long."""
    config = transformers.LlamaConfig(**SHAPES[shape], num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                                      max_position_embeddings=seq, use_cache=False, tie_word_embeddings=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if name in LINEARS:
                    setattr(parent, name, quantised(child))
    torch.cuda.empty_cache()
    return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS), autocast_adapter_dtype=False)


def main():
    shape, seq, micro = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if "liger" in sys.argv[4:]:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama(rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=True)
    torch.manual_seed(0)
    model = make_model(shape, seq)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(WARM_UP + STEPS):
        ids = torch.randint(0, 128256, (micro, seq), device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"case": f"peft_qlora_{shape}", "mode": " ".join(sys.argv[4:]) or "eager", "seq": seq, "micro_batch": micro,
                      "tokens_per_s": round(seq * micro / statistics.median(seconds[WARM_UP:])),
                      "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2), "loss": round(loss.item(), 3),
                      "adapters": str(trained[0].dtype)}), flush=True)


if __name__ == "__main__":
    main()
