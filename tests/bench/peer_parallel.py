"""PyTorch's own data parallelism, beside `hearth bench train` on the same host: a plain Llama, bf16 weights and states, random tokens,
SDPA, torch.compile, fused AdamW, gradient clipped at 1, no recompute. One process a GPU, or one without torchrun:
    torchrun --nproc_per_node N peer_parallel.py MODE --preset 1b --seq 4096 --mbs 4 [--accum A] [--attn cudnn]     -> one JSON line
MODE: single    no wrapper (several ranks: copies that exchange nothing, what their scaling cannot exceed)
      ddp       DistributedDataParallel around the compiled model, which TorchDynamo splits at the buckets; 100 MB each, as TorchTitan's
      zero1     the same with ZeroRedundancyOptimizer
      fsdp2     fully_shard of the embedding, of every block and of the head with the loss, each compiled first, as TorchTitan does
      fsdp2-nr  the same without resharding after forward (nor between micro-batches), much like ZeRO-2
Weights come from --seed alone, a rank's tokens from it and the rank: every mode on N ranks trains on the same numbers. The loss of every
step (mean over the ranks) goes to stderr. A step's time is the median after 4 steps, from barrier to barrier; TFLOP/s are 6 x (parameters
that multiply) + causal attention."""
import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

PRESETS = {
    "1b": {"hidden": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "ffn": 8192, "vocab": 128256, "theta": 5e5},
    "8b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 128256, "theta": 5e5},
    "135m": {"hidden": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ffn": 1536, "vocab": 49152, "theta": 1e5},
    "tiny": {"hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 384, "vocab": 1024, "theta": 1e4},
}
ATTENTION = {"auto": contextlib.nullcontext, "flash": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
             "cudnn": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)}
WARM_UP = 4


class Norm(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(size))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def linear(inputs, outputs):
    return torch.nn.Linear(inputs, outputs, bias=False)


def rotated(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        hidden, ffn, self.heads, self.kv_heads = (shape[key] for key in ("hidden", "ffn", "heads", "kv_heads"))
        self.head_dim = hidden // self.heads
        self.attention_norm, self.mlp_norm = Norm(hidden), Norm(hidden)
        self.qkv = linear(hidden, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.out = linear(hidden, hidden)
        self.gate_up = linear(hidden, 2 * ffn)
        self.down = linear(ffn, hidden)

    def forward(self, x, cos, sin):
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        attended = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True,
                                                  enable_gqa=self.heads != self.kv_heads)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Head(torch.nn.Module):
    """What follows the blocks, to the loss."""

    def __init__(self, shape):
        super().__init__()
        self.norm = Norm(shape["hidden"])
        self.linear = linear(shape["hidden"], shape["vocab"])

    def forward(self, x, labels):
        return F.cross_entropy(self.linear(self.norm(x)).float().flatten(0, 1), labels.flatten())


class Model(torch.nn.Module):
    def __init__(self, shape, seq):
        super().__init__()
        self.embedding = torch.nn.Embedding(shape["vocab"], shape["hidden"])
        self.blocks = torch.nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        self.head = Head(shape)
        half = shape["hidden"] // shape["heads"] // 2
        self.register_buffer("cos", torch.empty(seq, half))
        self.register_buffer("sin", torch.empty(seq, half))

    def forward(self, tokens, labels):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(x, labels)


@torch.no_grad()
def fill(model, shape, seed):
    """One whole weight at a time, the same on every rank; where it is sharded the rank keeps its part."""
    device = model.cos.device
    generator = torch.Generator(device).manual_seed(seed)
    for weight in model.parameters():
        whole = torch.ones(weight.shape, dtype=weight.dtype, device=device)
        if weight.ndim > 1:
            whole.normal_(0, 0.02, generator=generator)
        weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None) if isinstance(weight, DTensor) else whole)
    seq, half = model.cos.shape
    angles = torch.outer(torch.arange(seq).float(), shape["theta"] ** (-torch.arange(half).float() / half))
    model.cos.copy_(angles.cos())
    model.sin.copy_(angles.sin())


def make_model(options, device):
    """The wrapped model, its parameters and how many of them multiply."""
    shape = PRESETS[options.preset]
    with torch.device("meta"):
        model = Model(shape, options.seq).to(torch.bfloat16)
    multiplied = sum(weight.numel() for weight in model.parameters()) - model.embedding.weight.numel()
    sharded = options.mode.startswith("fsdp2")
    if options.compile and sharded:
        model.blocks = torch.nn.ModuleList(torch.compile(block, fullgraph=True) for block in model.blocks)
        model.head = torch.compile(model.head, fullgraph=True)
    elif options.compile:
        model.compile(fullgraph=True)
    if sharded:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for part in (model.embedding, *model.blocks):
            fully_shard(part, mesh=mesh, reshard_after_forward=options.mode == "fsdp2")
        fully_shard(model.head, mesh=mesh, reshard_after_forward=False)  # backward begins with it
        fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    fill(model, shape, options.seed)
    parameters = list(model.parameters())
    if options.mode in ("ddp", "zero1"):
        # static_graph with no_sync: torch 2.11 stops at an assertion (pytorch/pytorch#187732).
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=options.accum == 1, broadcast_buffers=False,
                                        bucket_cap_mb=100)
    return model, parameters, multiplied


def micro_batch(model, mode, is_last):
    """The gradients of the last micro-batch are exchanged, with what those before it have added up."""
    if mode in ("ddp", "zero1") and not is_last:
        return model.no_sync()
    if mode.startswith("fsdp2"):
        model.set_requires_gradient_sync(is_last)
        model.set_reshard_after_backward(is_last or mode == "fsdp2")
    return contextlib.nullcontext()


def measure(options, device):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shape = PRESETS[options.preset]
    model, parameters, multiplied = make_model(options, device)
    how = {"lr": 1e-4, "fused": True}
    optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **how) if options.mode == "zero1" else torch.optim.AdamW(parameters, **how)
    on_gpu = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(options.seed + 1 + rank)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def now():
        if on_gpu:
            torch.cuda.synchronize()
        dist.barrier()
        return time.perf_counter()

    seconds = []
    for step in range(options.steps):
        begin = now()
        total = torch.zeros((), device=device)
        for micro in range(options.accum):
            tokens = torch.randint(0, shape["vocab"], (options.mbs, options.seq + 1), device=device, generator=generator)
            with micro_batch(model, options.mode, micro == options.accum - 1):
                loss = model(tokens[:, :-1], tokens[:, 1:]) / options.accum
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(now() - begin)
        dist.all_reduce(total)
        mean = total.item() / ranks
        if rank == 0:
            print(f"step {step} loss {mean:.5f} {seconds[-1] * 1e3:.1f} ms", file=sys.stderr, flush=True)
        if not math.isfinite(mean):
            sys.exit(f"loss {mean} at step {step}")
    peak = torch.tensor(torch.cuda.max_memory_allocated() if on_gpu else 0, device=device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    took = statistics.median(seconds[WARM_UP:])
    rate = options.mbs * options.seq * options.accum / took
    flops = 6 * multiplied + 6 * shape["layers"] * shape["hidden"] * options.seq
    return {"peer": "torch", "mode": options.mode, "preset": options.preset, "ranks": ranks, "seq": options.seq, "mbs": options.mbs,
            "accum": options.accum, "tok_s": round(rate * ranks), "tok_s_per_gpu": round(rate), "step_ms": round(took * 1e3, 2),
            "tflops_per_gpu": round(flops * rate / 1e12, 2), "peak_gib": round(peak.item() / 2**30, 2), "loss": round(mean, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["single", "ddp", "zero1", "fsdp2", "fsdp2-nr"])
    parser.add_argument("--preset", required=True, choices=PRESETS)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--mbs", type=int, required=True, help="samples of one micro-batch on each rank")
    parser.add_argument("--accum", type=int, default=1, help="micro-batches of a step on each rank")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attn", choices=ATTENTION, default="auto")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps: more than {WARM_UP}, which warm up")
    if options.device == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        group = {"backend": "nccl", "device_id": device}
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
        group = {"backend": "gloo"}
    if "RANK" not in os.environ:  # not under torchrun
        group |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(**group)
    with ATTENTION[options.attn]():
        found = measure(options, device)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # fully_shard keeps gloo's threads, and now and then one of them aborts an interpreter that ends in the usual way


if __name__ == "__main__":
    main()
