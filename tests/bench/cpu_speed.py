"""Row 11 of the foundation, CPU part: tokens/s of the quickstart model in hearth (mpirun, 2 ranks, 1 thread each) and
in plain eager PyTorch with the same threads (2 processes, 1 thread each, gradients averaged with gloo).
Prints both and their ratio; nothing is asserted, because the machine may be busy.      cpu_speed.py [STEPS]"""
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from fixture import REPOSITORY, Workspace  # noqa: E402

# configs/quickstart.yaml, read here so that both sides run the same shape.
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB, SEQ, MICRO, BATCH = 128, 4, 4, 2, 384, 4096, 256, 2, 8


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        head = HIDDEN // HEADS
        self.norm1, self.norm2 = torch.nn.RMSNorm(HIDDEN, 1e-5), torch.nn.RMSNorm(HIDDEN, 1e-5)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(HIDDEN, n * head, bias=False) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS))
        self.gate, self.up = torch.nn.Linear(HIDDEN, FFN, bias=False), torch.nn.Linear(HIDDEN, FFN, bias=False)
        self.down = torch.nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        b, s, _ = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, s, n, -1).transpose(1, 2) for f, n in ((self.q, HEADS), (self.k, KV_HEADS), (self.v, KV_HEADS)))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, HIDDEN))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB, HIDDEN)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = torch.nn.RMSNorm(HIDDEN, 1e-5)
        head = HIDDEN // HEADS
        angles = torch.outer(torch.arange(SEQ).float(), 10000.0 ** (-torch.arange(0, head, 2).float() / head))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(F.linear(self.norm(x), self.embed.weight).flatten(0, 1), targets.flatten())


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def pytorch_rank(rank, steps, store, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(0, VOCAB, (MICRO, SEQ + 1), generator=torch.Generator().manual_seed(rank))
    accumulate = BATCH // (MICRO * 2)
    for step in range(steps + 5):
        if step == 5:  # the first steps warm caches up
            dist.barrier()
            begin = time.perf_counter()
        for _ in range(accumulate):
            (model(tokens[:, :-1], tokens[:, 1:]) / accumulate).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        dist.all_reduce(flat)
        flat /= 2
        offset = 0
        for p in model.parameters():
            p.grad.copy_(flat[offset:offset + p.numel()].view_as(p))
            offset += p.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    dist.barrier()
    if rank == 0:
        result.value = steps * BATCH * SEQ / (time.perf_counter() - begin)
    dist.destroy_process_group()


def pytorch_speed(steps, store):
    context = multiprocessing.get_context("spawn")
    result = context.Value("d", 0.0)
    ranks = [context.Process(target=pytorch_rank, args=(r, steps, store, result)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return result.value


def hearth_speed(steps, workspace):
    text = open(os.path.join(REPOSITORY, "configs", "quickstart.yaml"), encoding="utf-8").read()
    text = re.sub(r"shards/quickstart/", "shards/", text)
    with open(workspace.path("speed.yaml"), "w", encoding="utf-8") as out:
        out.write(text)
    workspace.train("speed", 2, config="speed.yaml", sets=[f"training.train_iters={steps + 5}", "training.eval_interval=0",
                                                           "training.log_interval=1", "checkpoint.save_interval=0"])
    rates = [m["tokens/s"] for s, m in sorted(workspace.metrics("speed").items()) if s > 5]
    return len(rates) / sum(1 / r for r in rates)  # steps have equal tokens: the harmonic mean is the overall rate


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with Workspace() as workspace:
        # hearth, PyTorch, hearth, PyTorch: a machine that gets busy in between shows.
        ours, theirs = [], []
        for _ in range(2):
            ours.append(hearth_speed(steps, workspace))
            theirs.append(pytorch_speed(steps, workspace.path(f"store{len(theirs)}")))  # gloo may or may not remove it
            shutil.rmtree(workspace.path("runs", "speed"))
    print(f"hearth   {' '.join(f'{r:9.0f}' for r in ours)} tokens/s (2 ranks x 1 thread)")
    print(f"PyTorch  {' '.join(f'{r:9.0f}' for r in theirs)} tokens/s (2 processes x 1 thread, eager, gloo)")
    print(f"ratio    {max(ours) / max(theirs):.2f} (best of each)")


if __name__ == "__main__":
    main()
