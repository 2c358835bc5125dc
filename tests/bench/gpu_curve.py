"""The loss curve of a real run in bf16 on one GPU beside PyTorch's: 300 steps of a 33M-parameter Llama on real text. Each side
trains several times from the same weights over the same samples, in runs that differ in their rounding alone (micro-batches, and
FlashAttention for one of ours), which shows how far apart rounding takes two curves. Ours are `hearth train` as it is by default (cuDNN
attention, fused kernels, documents apart), PyTorch's are transformers' Llama with the same AdamW, clipping and learning rates:
bf16 with fp32 master weights and gradients. One run of each side in fp32 is the truth. Exits with 1 unless the mean of our smoothed curves is
as near to the mean of PyTorch's as PyTorch's own runs are to each other, and our fp32 curve to PyTorch's as well.
    gpu_curve.py DUMP_SAMPLES [FILE.jsonl]      FILE: lines of {"text": ...}, say the quickstart's english.jsonl; without it the text
                                                is the Python code of the installed torch and transformers
HEARTH_TEST_DEVICE=cuda puts it on the GPU, as tests/gpu.sh curve does."""
import itertools
import json
import os
import sys
import tempfile
import time

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "integration"))
from fixture import Report, Workspace, device, hearth, max_or_nan  # noqa: E402
from train_vs_pytorch import learning_rate, make_model, read_samples  # noqa: E402

STEPS, SEQ, BATCH, WINDOW = 300, 512, 32, 20
VOCAB = 8192
SHAPE = {"vocab_size": VOCAB, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "max_position_embeddings": SEQ, "tie_word_embeddings": False}
OPTIMIZER = {"lr": 1e-3, "min_lr": 1e-4, "lr_warmup_iters": 30, "lr_decay_iters": STEPS}
# The fused kernel that takes a mask, where there is one.
FUSED, PLAIN = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], [SDPBackend.MATH]
# Runs that differ in rounding alone: the sizes of their micro-batches, and what else is set for ours.
OURS = {"hearth 16": (16,), "hearth 8": (8,), "hearth 32": (32,), "hearth 16 flash": (16, "training.attention_backend=flash")}
THEIRS = {"torch 16": 16, "torch 8": 8, "torch 32": 32}
TEXT_BYTES = 32 << 20
# Nats. Two runs that differ in the order of sums alone are this far apart where bf16 happens to agree with fp32.
FLOOR = 1e-3


def write_python_text(path):
    """Code that every machine with these packages has, a file a document, in an order of its own."""
    files = []
    for package in (torch, transformers):
        for folder, _, names in os.walk(os.path.dirname(package.__file__)):
            files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    files.sort(key=lambda name: name.split("site-packages")[-1].split("dist-packages")[-1])
    size = 0
    with open(path, "w", encoding="utf-8") as out:
        for name in files[::-1]:  # transformers first: more prose, less generated code
            with open(name, encoding="utf-8", errors="ignore") as source:
                text = source.read()
            if len(text) > 200:
                out.write(json.dumps({"text": text}) + "\n")
                size += len(text)
            if size > TEXT_BYTES:
                break
    return path


class Stream:
    """The samples of the run on the device: ids, targets (-100 where none counts), and the document of each token."""

    def __init__(self, samples):
        tokens = torch.tensor([s["tokens"] for s in samples])
        keep = torch.tensor([s["loss_mask"] for s in samples], dtype=torch.bool)
        starts = torch.zeros(len(samples), SEQ, dtype=torch.long)
        for row, sample in enumerate(samples):
            starts[row, sample["document_starts"][1:]] = 1
        self.ids, self.targets, self.document = (
            t.to(device()) for t in (tokens[:, :-1].contiguous(), tokens[:, 1:].masked_fill(~keep, -100), starts.cumsum(1)))
        self.earlier = torch.ones(SEQ, SEQ, dtype=torch.bool, device=device()).tril()

    def batch(self, rows, dtype):
        """Ids, targets, and the additive mask by which a token sees only earlier tokens of its own document."""
        document = self.document[rows]
        sees = (document[:, :, None] == document[:, None, :]) & self.earlier
        mask = torch.zeros(sees.shape, dtype=dtype, device=device()).masked_fill(~sees, float("-inf"))[:, None]
        return self.ids[rows], self.targets[rows], mask


def train_in_pytorch(start, stream, dtype, micro, attention):
    """Losses of all steps. In bf16 the model computes in bf16 alone; gradients are summed and weights updated in fp32."""
    model = transformers.LlamaForCausalLM.from_pretrained(start, dtype=dtype, attn_implementation="sdpa").to(device()).train()
    weights = list(model.parameters())
    masters = [w.detach().float().clone().requires_grad_() for w in weights]
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW([{"params": [m for m in masters if m.dim() > 1], "weight_decay": 0.1},
                                   {"params": [m for m in masters if m.dim() <= 1], "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), eps=1e-8, fused=True)
    losses = []
    for step in range(STEPS):
        first = step * BATCH
        valid = (stream.targets[first:first + BATCH] >= 0).sum()
        total = torch.zeros((), device=device())
        for row in range(first, first + BATCH, micro):
            ids, targets, mask = stream.batch(slice(row, row + micro), dtype)
            with sdpa_kernel(attention):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / valid
            loss.backward()
            total += loss.detach()
            torch._foreach_add_([m.grad for m in masters], [w.grad.float() for w in weights])
            model.zero_grad(set_to_none=True)
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, **OPTIMIZER)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
            torch._foreach_zero_([m.grad for m in masters])
        losses.append(total)
    return torch.stack(losses).tolist()


def train_in_hearth(workspace, name, dtype, micro, *sets):
    changes = {f"model__{key}": value for key, value in SHAPE.items()} | {f"optimizer__{key}": value for key, value in OPTIMIZER.items()}
    # weight_decay, betas and eps are the defaults of both sides: said here so that a changed default shows.
    changes.update(model__init_from="start", data__seq_length=SEQ, data__validation=[], training__train_iters=STEPS,
                   training__micro_batch_size=micro, training__global_batch_size=BATCH, precision__dtype=dtype,
                   optimizer__weight_decay=0.1, optimizer__adam_beta1=0.9, optimizer__adam_beta2=0.95, optimizer__adam_eps=1e-8)
    folder = name.replace(" ", "_")
    config = workspace.write_config(f"{folder}.yaml", **changes)
    # Not Workspace.train: that asks for deterministic mode, and with it for other kernels than a user's.
    words = [word for value in (f"checkpoint.save=runs/{folder}", *sets) for word in ("--set", value)]
    hearth(["train", config, "--device", device(), *words], workspace.folder, timeout=170)
    metrics = workspace.metrics(folder)
    rates = [abs(metrics[s + 1]["learning_rate"] / learning_rate(s, **OPTIMIZER) - 1) for s in range(STEPS)]
    return workspace.losses(folder, STEPS), max_or_nan(rates)


def smooth(losses):
    """Means over WINDOW steps, one for each step from the WINDOW-th on."""
    return [sum(losses[end - WINDOW:end]) / WINDOW for end in range(WINDOW, len(losses) + 1)]


def mean(curves):
    return [sum(losses) / len(losses) for losses in zip(*curves, strict=True)]


def distance(a, b):
    return max_or_nan([abs(x - y) for x, y in zip(smooth(a), smooth(b), strict=True)])


def spread(curves):
    """The largest distance of two of them."""
    return max_or_nan([distance(a, b) for a, b in itertools.combinations(curves, 2)])


def print_curves(curves):
    print("step " + "".join(f"{name:>16}" for name in curves))
    for step in [1, *range(25, STEPS + 1, 25)]:
        print(f"{step:4d} " + "".join(f"{losses[step - 1]:16.5f}" for losses in curves.values()))


def compare(curves, report):
    ours, theirs = ([curves[name] for name in names] for names in (OURS, THEIRS))
    truth = curves["torch fp32"]
    figures = {"mean of hearth - mean of torch": distance(mean(ours), mean(theirs)), "between runs of hearth": spread(ours),
               "between runs of torch": spread(theirs), "mean of hearth - fp32": distance(mean(ours), truth),
               "mean of torch - fp32": distance(mean(theirs), truth), "hearth fp32 - torch fp32": distance(curves["hearth fp32"], truth)}
    print(f"largest distance of the curves smoothed over {WINDOW} steps, in nats:")
    for name, value in figures.items():
        print(f"     {name:<32} {value:.2e}")
    last = {name: smooth(losses)[-1] for name, losses in curves.items()}
    print(json.dumps({"steps": STEPS, "mean_of_last_losses": last} | figures))

    def check(name, got, allowed):
        report.check(name, got <= allowed, f"{got:.2e} (<= {allowed:.2e})")
    report.check("PyTorch learns", truth[-1] < 0.8 * truth[0], f"{truth[0]:.4f} -> {truth[-1]:.4f}")
    check("first loss as near to fp32 as PyTorch's", max_or_nan([abs(losses[0] - truth[0]) for losses in ours]),
          2 * max_or_nan([abs(losses[0] - truth[0]) for losses in theirs]) + FLOOR)
    noise = max_or_nan([figures["between runs of torch"], FLOOR])
    check("bf16 curves equal to PyTorch's within its noise", figures["mean of hearth - mean of torch"], noise)
    check("fp32 curve equal to PyTorch's within the noise of bf16", figures["hearth fp32 - torch fp32"], noise)


def run(workspace, tool):
    begin = time.monotonic()

    def say(what):
        print(f"{time.monotonic() - begin:5.0f} s  {what}", flush=True)
    model = make_model(workspace.path("start"), **SHAPE)
    with torch.no_grad():  # values that bf16 holds: all runs start from the very same weights
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(workspace.path("start"))
    samples = read_samples(tool, workspace.path("shards/train"), STEPS * BATCH, SEQ)
    documents = sum(len(s["document_starts"]) for s in samples)
    stream = Stream(samples)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(samples)} samples of {SEQ} tokens, "
        f"{documents / len(samples):.1f} documents in each")
    curves, rate_errors = {}, []
    for name, dtype, *how in [(name, "bf16", *how) for name, how in OURS.items()] + [("hearth fp32", "fp32", BATCH)]:
        curves[name], rate_error = train_in_hearth(workspace, name, dtype, *how)
        rate_errors.append(rate_error)
        say(name)
    for name, dtype, micro, attention in [(name, torch.bfloat16, micro, FUSED) for name, micro in THEIRS.items()] + [
            ("torch fp32", torch.float32, BATCH, PLAIN)]:
        curves[name] = train_in_pytorch(workspace.path("start"), stream, dtype, micro, attention)
        say(name)
    print_curves(curves)
    report = Report()
    report.check("learning rates", max_or_nan(rate_errors) <= 1e-12, f"{max_or_nan(rate_errors):.1e}")
    compare(curves, report)
    report.finish()


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")  # fp32 is the truth: no TF32
    with tempfile.TemporaryDirectory() as folder:
        text = sys.argv[2] if len(sys.argv) == 3 else write_python_text(os.path.join(folder, "text.jsonl"))
        with Workspace(corpus=text, vocab_size=VOCAB) as workspace:
            run(workspace, sys.argv[1])


if __name__ == "__main__":
    main()
