#!/usr/bin/env python3
"""Hearth's kernels beside what torch.compile makes of the same operation, at the shapes of `hearth bench kernels`.
    compiled_kernels.py [--table FILE] [--only REGEX] [--seconds N] [--smoke]
FILE is the output of `hearth bench kernels` of the same card and call; without it $HEARTH_BINARY is run for it. For every memory-bound
row: our median, that of the operation written in plain PyTorch with sums in fp32 and compiled (mode default, static shapes), and the
ratio; medians of 30 runs by CUDA events over several input sets in rotation, as ours. A compilation takes seconds, so that all rows take
minutes: --only picks rows by "op shape", and no row begins after --seconds. Attention and products are left out: compiled or not, PyTorch
calls the libraries of the bench's own ATen column. --smoke runs every formula at tiny shapes on the CPU, not compiled, and compares the
gradients with autograd's."""
import argparse
import os
import re
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

EPS = 1e-5


def rms_norm(x, w):
    return F.rms_norm(x, (x.size(-1),), w, EPS)


def norm_gradient(dy, x, w, rstd):
    """dx in fp32, and the addends of dw, one a row."""
    x, g = x.float(), dy.float()
    gw = g * w.float()
    dx = rstd * (gw - x * rstd.square() * (gw * x).mean(-1, keepdim=True))
    return dx, g * x * rstd


def rms_norm_backward(dy, x, w, rstd, dw):
    dx, addends = norm_gradient(dy, x, w, rstd)
    dw.add_(addends.sum(0))
    return dx.to(x.dtype)


def rms_norm_residual_fwd(x, residual, w):
    s = x + residual
    return s, rms_norm(s, w)


def rms_norm_backward_y(dy, x, w, rstd, dw, residual):
    dx, addends = norm_gradient(dy, x, w, rstd)
    dw.add_(addends.sum(0))
    return (dx + residual.float()).to(x.dtype), (x.float() * rstd * w.float()).to(x.dtype)


def rotate(x, cosine, sine, sign=1.0):
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cosine - sign * high * sine, high * cosine + sign * low * sine], -1)


def rope(q, k, cosine, sine):
    return rotate(q, cosine, sine).to(q.dtype), rotate(k, cosine, sine).to(k.dtype)


def head_norm_rope_fwd(q, k, wq, wk, cosine, sine):
    return rope(rms_norm(q, wq), rms_norm(k, wk), cosine, sine)


def head_norm_rope_bwd(dq, dk, q, k, wq, wk, rstd_q, rstd_k, cosine, sine, dwq, dwk):
    gradients = []
    for dy, x, w, rstd, dw in ((dq, q, wq, rstd_q, dwq), (dk, k, wk, rstd_k, dwk)):
        dx, addends = norm_gradient(rotate(dy, cosine, sine, -1.0), x, w, rstd)
        dw.add_(addends.flatten(0, -2).sum(0))
        gradients.append(dx.to(x.dtype))
    return tuple(gradients)


def swiglu_forward(gu):
    g, u = gu.chunk(2, -1)
    return F.silu(g) * u


def swiglu_gradients(gu, dh):
    g, u = (part.float() for part in gu.chunk(2, -1))
    s = torch.sigmoid(g)
    silu, dh = g * s, dh.float()
    return torch.cat([dh * u * s * (1 + g * (1 - s)), dh * silu], -1).to(gu.dtype), (silu * u).to(gu.dtype)


def swiglu_backward(gu, dh):
    return swiglu_gradients(gu, dh)[0]


def cross_entropy_fwd_bwd(logits, targets):
    z = logits.float()
    lse = torch.logsumexp(z, -1, keepdim=True)
    hit = torch.arange(z.size(1), device=z.device) == targets.unsqueeze(1)
    loss = (lse - z.gather(1, targets.unsqueeze(1))).squeeze(1)
    logits.copy_(torch.exp(z - lse) - hit.float())
    return loss


def distillation(student, teacher, targets, temperature=2.0, kd_alpha=0.5):
    z, t = student.float(), torch.softmax(teacher.float() / temperature, -1)
    log_s = torch.log_softmax(z / temperature, -1)
    divergence = (t * (torch.log_softmax(teacher.float() / temperature, -1) - log_s)).sum(-1)
    hit = torch.arange(z.size(1), device=z.device) == targets.unsqueeze(1)
    lse = torch.logsumexp(z, -1, keepdim=True)
    loss = (lse - z.gather(1, targets.unsqueeze(1))).squeeze(1)
    student.copy_((1 - kd_alpha) * (torch.exp(z - lse) - hit.float()) + kd_alpha * temperature * (log_s.exp() - t))
    return loss, divergence


def dropout(x):
    return F.dropout(x, 0.1, training=True)


def vocab_parallel_stats(logits, columns):
    z = logits.float()
    largest = z.amax(-1, keepdim=True)
    return torch.cat([largest, (z - largest).exp().sum(-1, keepdim=True), z.gather(1, columns.unsqueeze(1))], 1)


def vocab_parallel_gradient(logits, columns, lse):
    hit = torch.arange(logits.size(1), device=logits.device) == columns.unsqueeze(1)
    logits.copy_(torch.exp(logits.float() - lse.unsqueeze(1)) - hit.float())


def adamw(p, g, m, v, model, lr=1e-4, b1=0.9, b2=0.95, eps=1e-8, decay=0.1, step=10):
    gf, mf, vf, pf = g.float(), m.float(), v.float(), p.float()
    mf = mf + (gf - mf) * (1 - b1)
    vf = vf * b2 + gf.square() * (1 - b2)
    pf = pf * (1 - lr * decay) - lr / (1 - b1**step) * mf / ((vf / (1 - b2**step)).sqrt() + eps)
    m.copy_(mf), v.copy_(vf), p.copy_(pf)
    if model is not None:
        model.copy_(pf)


def sum_of_squares(x):
    return x.float().square().sum()


def embedding_backward(ids, dy, accum):
    accum.index_add_(0, ids, dy.to(accum.dtype))


class Inputs:
    """Random tensors of a row, one call after the other."""

    def __init__(self, device):
        self.device = device

    def __call__(self, *shape, dtype=torch.bfloat16):
        return torch.randn(shape, device=self.device, dtype=dtype)

    def zeros(self, *shape, dtype=torch.float32):
        return torch.zeros(shape, device=self.device, dtype=dtype)

    def ids(self, count, limit):
        """Squares of uniforms: low ids are frequent, as in text."""
        return (torch.rand(count, device=self.device).square() * limit).long()

    def angles(self, tokens, width):
        inverse = 1e4 ** (-torch.arange(0, width, 2, device=self.device) / width)
        angle = torch.outer(torch.arange(tokens, device=self.device, dtype=torch.float32), inverse).unsqueeze(1)
        return angle.cos(), angle.sin()

    def rstd(self, x):
        return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)


def norm_rows(rows, cols):
    shape = f"[{rows}, {cols}] bf16"

    def backward(new):
        x = new(rows, cols)
        return new(rows, cols), x, new(cols), new.rstd(x), new.zeros(cols)
    yield "rms_norm_forward", shape, rms_norm, lambda new: (new(rows, cols), new(cols))
    yield "rms_norm_backward", shape, rms_norm_backward, backward
    yield "rms_norm_residual_fwd", shape, rms_norm_residual_fwd, lambda new: (new(rows, cols), new(rows, cols), new(cols))
    yield "rms_norm_backward_y", shape, rms_norm_backward_y, lambda new: (*backward(new), new(rows, cols))


def heads(new, tokens, q, k, width):
    qkv = new(tokens, q + 2 * k, width)
    return qkv[:, :q], qkv[:, q:q + k]


def rope_row(tokens, q, k, width):
    yield "rope", f"[{tokens}, {q}+{k}, {width}] bf16", rope, lambda new: (*heads(new, tokens, q, k, width), *new.angles(tokens, width))


def head_norm_rows(tokens, q, k, width):
    shape = f"[{tokens}, {q}+{k}, {width}] bf16"

    def backward(new):
        x = heads(new, tokens, q, k, width)
        return (*heads(new, tokens, q, k, width), *x, new(width), new(width), new.rstd(x[0]), new.rstd(x[1]), *new.angles(tokens, width),
                new.zeros(width), new.zeros(width))
    yield "head_norm_rope_fwd", shape, head_norm_rope_fwd, lambda new: (*heads(new, tokens, q, k, width), new(width), new(width),
                                                                         *new.angles(tokens, width))
    yield "head_norm_rope_bwd", shape, head_norm_rope_bwd, backward


def swiglu_rows(rows, width):
    shape = f"[{rows}, 2 x {width}] bf16"
    yield "swiglu_forward", shape, swiglu_forward, lambda new: (new(rows, 2 * width),)
    for op, formula in (("swiglu_backward", swiglu_backward), ("swiglu_backward_h", swiglu_gradients)):
        yield op, shape, formula, lambda new: (new(rows, 2 * width), new(rows, width))


def loss_row(rows, vocab):
    yield "cross_entropy_fwd_bwd", f"[{rows}, {vocab}] bf16", cross_entropy_fwd_bwd, lambda new: (new(rows, vocab), new.ids(rows, vocab))


def distillation_row(rows, vocab):
    yield "distillation", f"2 x [{rows}, {vocab}] bf16", distillation, lambda new: (new(rows, vocab), new(rows, vocab), new.ids(rows, vocab))


def dropout_row(rows, cols):
    yield "dropout", f"[{rows}, {cols}] bf16", dropout, lambda new: (new(rows, cols),)


def vocab_parallel_rows(rows, columns):
    shape = f"[{rows}, {columns}] bf16"
    yield "vocab_parallel_stats", shape, vocab_parallel_stats, lambda new: (new(rows, columns), new.ids(rows, columns))
    yield "vocab_parallel_gradient", shape, vocab_parallel_gradient, lambda new: (new(rows, columns), new.ids(rows, columns),
                                                                                  new.zeros(rows) + 9.0)


def optimizer_rows(count):
    def states(new, dtype):
        model = new(count) if dtype == torch.float32 else None
        return new(count, dtype=dtype), new(count, dtype=dtype), new(count, dtype=dtype), new(count, dtype=dtype).square(), model
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield "adamw", f"[{count}] {name}", adamw, lambda new, dtype=dtype: states(new, dtype)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield "sum_of_squares", f"[{count}] {name}", sum_of_squares, lambda new, dtype=dtype: (new(count, dtype=dtype),)


def embedding_rows(tokens, vocab, width):
    shape = f"[{tokens}] of [{vocab}, {width}]"
    yield "embedding_forward", shape, F.embedding, lambda new: (new.ids(tokens, vocab), new(vocab, width))
    for op, dtype in (("embedding_backward", torch.float32), ("embedding_backward_bf16", torch.bfloat16)):
        yield op, shape, embedding_backward, lambda new, dtype=dtype: (new.ids(tokens, vocab), new(tokens, width),
                                                                       new.zeros(vocab, width, dtype=dtype))


def rows_of(smoke):
    if smoke:
        calls = [norm_rows(9, 24), rope_row(5, 4, 2, 16), head_norm_rows(5, 4, 2, 16), swiglu_rows(5, 12), loss_row(6, 40), distillation_row(6, 40),
                 dropout_row(5, 8), vocab_parallel_rows(6, 40), optimizer_rows(100), embedding_rows(12, 9, 8)]
    else:
        calls = [*(norm_rows(*s) for s in ((16384, 2048), (16384, 4096), (32768, 576), (524288, 128))),
                 *(rope_row(*s) for s in ((16384, 32, 8, 64), (8192, 32, 8, 128), (32768, 9, 3, 64))),
                 *(head_norm_rows(*s) for s in ((8192, 32, 8, 128), (16384, 16, 8, 128))),
                 *(swiglu_rows(*s) for s in ((16384, 8192), (32768, 1536))),
                 *(loss_row(*s) for s in ((4096, 128256), (4096, 151936), (8192, 49152), (8192, 32000), (16384, 16032))),
                 distillation_row(1024, 128256), dropout_row(8192, 2048), dropout_row(8192, 8192),
                 vocab_parallel_rows(8192, 16032), vocab_parallel_rows(32768, 4000), optimizer_rows(1 << 28),
                 embedding_rows(16384, 128256, 2048), embedding_rows(32768, 49152, 576)]
    return [row for call in calls for row in call]


def bytes_of(arguments):
    return sum(a.numel() * a.element_size() for a in arguments if torch.is_tensor(a))


def median_us(call, sets, repeats=30):
    for arguments in sets:
        call(*arguments)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for i, (begin, end) in enumerate(events):
        begin.record()
        call(*sets[i % len(sets)])
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) * 1e3


def our_medians(text):
    found = re.findall(r"^(\w+?) *((?:2 x )?\[.*?(?:bf16|fp32|\])) +([0-9.]+) +\d+ GB/s", text, re.MULTILINE)
    return {(op, shape): float(us) for op, shape, us in found}


def compare(options):
    text = open(options.table).read() if options.table else \
        subprocess.run([os.environ["HEARTH_BINARY"], "bench", "kernels"], check=True, capture_output=True, text=True).stdout
    ours, begin, new, missing = our_medians(text), time.monotonic(), Inputs("cuda"), 0
    form = "{:<24}{:<28}{:>12}{:>14}{:>8}"
    print(torch.cuda.get_device_name(), torch.__version__)
    print(form.format("op", "shape", "Hearth us", "compiled us", "ratio"))
    for op, shape, formula, make in rows_of(False):
        if not re.search(options.only, f"{op} {shape}"):
            continue
        if time.monotonic() - begin > options.seconds:
            print(f"{options.seconds:g} s are up before {op} {shape}")
            return 1
        torch.compiler.reset()
        first = make(new)
        sets = [first, *(make(new) for _ in range(min(8, int(2e9 // bytes_of(first)))))]
        with torch.no_grad():
            us = median_us(torch.compile(formula, dynamic=False), sets)
        own = ours.get((op, shape))
        missing += own is None
        print(form.format(op, shape, f"{own:.1f}" if own else "absent", f"{us:.1f}", f"{us / own:.2f}" if own else ""), flush=True)
        del first, sets
        torch.cuda.empty_cache()
    return 1 if missing else 0


def close(what, got, want, tolerance=2e-5):
    error = (got.float() - want.float()).abs().max().item()
    assert error <= tolerance * max(1.0, want.float().abs().max().item()), f"{what}: off by {error}"


def smoke():
    """Formulas in fp32 against autograd, and every row once."""
    torch.manual_seed(1)

    def leaf(*shape):
        return torch.randn(shape, requires_grad=True)
    x, w, dy, residual = leaf(9, 24), leaf(24), torch.randn(9, 24), torch.randn(9, 24)
    rms_norm(x, w).backward(dy)
    rstd, dw = Inputs("cpu").rstd(x.detach()), torch.zeros(24)
    dx, y = rms_norm_backward_y(dy, x.detach(), w.detach(), rstd, dw, residual)
    close("norm dx", dx, x.grad + residual), close("norm dw", dw, w.grad), close("norm y", y, rms_norm(x, w).detach())
    q, k, wq, wk = leaf(5, 4, 16), leaf(5, 2, 16), leaf(16), leaf(16)
    cosine, sine = Inputs("cpu").angles(5, 16)
    out = head_norm_rope_fwd(q, k, wq, wk, cosine, sine)
    d = [torch.randn_like(part) for part in out]
    torch.autograd.backward(out, d)
    dwq, dwk = torch.zeros(16), torch.zeros(16)
    got = head_norm_rope_bwd(*d, q.detach(), k.detach(), wq.detach(), wk.detach(), *(Inputs("cpu").rstd(t.detach()) for t in (q, k)), cosine, sine, dwq, dwk)
    for name, a, b in (("dq", got[0], q.grad), ("dk", got[1], k.grad), ("dwq", dwq, wq.grad), ("dwk", dwk, wk.grad)):
        close(name, a, b)
    gu, dh = leaf(5, 24), torch.randn(5, 12)
    swiglu_forward(gu).backward(dh)
    d_gu, h = swiglu_gradients(gu.detach(), dh)
    close("swiglu", d_gu, gu.grad), close("h", h, swiglu_forward(gu).detach())
    logits, teacher, targets = leaf(6, 40), torch.randn(6, 40), torch.randint(40, (6,))
    loss = F.cross_entropy(logits, targets, reduction="none")
    gradient, = torch.autograd.grad(loss.sum(), logits)
    work = logits.detach().clone()
    close("loss", cross_entropy_fwd_bwd(work, targets), loss.detach()), close("loss gradient", work, gradient)
    divergence = F.kl_div(torch.log_softmax(logits / 2, -1), torch.softmax(teacher / 2, -1), reduction="none").sum(-1)
    gradient, = torch.autograd.grad((0.5 * F.cross_entropy(logits, targets, reduction="none") + 0.5 * 4 * divergence).sum(), logits)
    work = logits.detach().clone()
    close("divergence", distillation(work, teacher, targets)[1], divergence.detach()), close("distillation gradient", work, gradient)
    p = torch.nn.Parameter(torch.randn(50))
    p.grad = torch.randn(50)
    mine = [p.detach().clone(), p.grad.clone(), torch.zeros(50), torch.zeros(50), None]
    optimizer = torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer.step()
    adamw(*mine, step=1)
    close("adamw", mine[0], p.detach())
    for op, shape, formula, make in rows_of(True):
        with torch.no_grad():
            formula(*make(Inputs("cpu")))
    table = "rms_norm_forward        [16384, 2048] bf16               37.6    3574 GB/s     85%\n" \
            "embedding_backward      [16384] of [128256, 2048]       128.6    2366 GB/s     56%\n" \
            "distillation            2 x [1024, 128256] bf16         571.3    3218 GB/s     77%\n"
    assert set(our_medians(table)) <= {row[:2] for row in rows_of(False)} and len(our_medians(table)) == 3, our_medians(table)
    print("ok: formulas equal autograd's, every row runs")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="FILE")
    parser.add_argument("--only", metavar="REGEX", default="")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    sys.exit(smoke() if options.smoke else compare(options))


if __name__ == "__main__":
    main()
