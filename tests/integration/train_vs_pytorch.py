"""Row 4 of the foundation: a 100-step fp32 run equals the same run written with PyTorch and transformers: the same
initial weights (hearth starts from a directory that transformers saved), the same batches (DUMP_SAMPLES prints what the
sampler gives), AdamW, clipping, warm-up and cosine.      train_vs_pytorch.py DUMP_SAMPLES"""
import json
import math
import subprocess
import sys

import torch
import transformers

from fixture import BASE_CONFIG, Report, Workspace

FIRST20, REST, STEPS = 2e-6, 5e-5, 100
SEQ, BATCH, SEED = BASE_CONFIG["data.seq_length"], BASE_CONFIG["training.global_batch_size"], BASE_CONFIG["training.seed"]


def make_model(folder, seed=3, **changes):
    """Saves a random Llama of the shape of BASE_CONFIG, but for `changes` of its config.json."""
    torch.manual_seed(seed)
    shape = {key.split(".")[1]: value for key, value in BASE_CONFIG.items() if key.startswith("model.") and key != "model.family"}
    config = transformers.LlamaConfig(**{**shape, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": None, "eos_token_id": 0,
                                         "attn_implementation": "eager", **changes})
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():  # norms away from 1, so that they are tested too
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def read_samples(tool, dataset, count, seq=SEQ):
    text = subprocess.run([tool, dataset, str(seq), str(SEED), "0", str(count)], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def batch_tensors(samples):
    """Ids, targets, and the additive mask by which a token sees only earlier tokens of its own document."""
    tokens = torch.tensor([s["tokens"] for s in samples])
    keep = torch.tensor([s["loss_mask"] for s in samples], dtype=torch.bool)
    document = torch.zeros(len(samples), SEQ, dtype=torch.long)
    for row, sample in enumerate(samples):
        for start in sample["document_starts"][1:]:
            document[row, start:] += 1
    sees = (document[:, :, None] == document[:, None, :]) & torch.ones(SEQ, SEQ, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))[:, None]
    return tokens[:, :-1], tokens[:, 1:], keep, mask


def learning_rate(step, **changes):
    """Linear warm-up, then cosine to min_lr over the rest of lr_decay_iters; step counts from 0. `changes` are to the section
    `optimizer` of BASE_CONFIG."""
    c = {k.split(".")[1]: v for k, v in BASE_CONFIG.items() if k.startswith("optimizer.")} | changes
    if step < c["lr_warmup_iters"]:
        return c["lr"] * (step + 1) / c["lr_warmup_iters"]
    progress = (step - c["lr_warmup_iters"]) / (c["lr_decay_iters"] - c["lr_warmup_iters"])
    return c["min_lr"] + (c["lr"] - c["min_lr"]) * 0.5 * (1 + math.cos(math.pi * progress))


def train_in_pytorch(model, samples):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(STEPS):
        ids, targets, keep, mask = batch_tensors(samples[step * BATCH:(step + 1) * BATCH])
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits[keep], targets[keep])
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


def main():
    torch.set_num_threads(1)
    report = Report()
    with Workspace() as workspace:
        model = make_model(workspace.path("start"))
        # weight_decay, betas and eps are the defaults of both files: said here so that a changed default shows.
        workspace.write_config(model__init_from="start", optimizer__weight_decay=0.1, optimizer__adam_beta1=0.9,
                               optimizer__adam_beta2=0.95, optimizer__adam_eps=1e-8)
        for ranks in (1, 2):
            workspace.train(f"r{ranks}", ranks)
        samples = read_samples(sys.argv[1], workspace.path("shards/train"), STEPS * BATCH)
        borders = sum(len(s["document_starts"]) > 1 for s in samples)
        report.check("samples with several documents are among them", borders > len(samples) // 10, f"{borders} of {len(samples)}")
        losses, norms = train_in_pytorch(model, samples)
        report.check("PyTorch learns", losses[-1] < 0.8 * losses[0], f"{losses[0]:.4f} -> {losses[-1]:.4f}")
        for ranks in (1, 2):
            run = f"r{ranks}"
            report.close_losses(f"{ranks} ranks = PyTorch", workspace.losses(run, STEPS), losses, FIRST20, REST)
            metrics = workspace.metrics(run)
            worst = max(abs(metrics[s + 1]["grad_norm"] - norms[s]) / norms[s] for s in range(20))
            # A norm sums all gradients, each within 2e-5 (row 3 of the foundation).
            report.check(f"{ranks} ranks: gradient norms", worst <= 2e-5, f"{worst:.2e} (<= 2e-05)")
            worst = max(abs(metrics[s + 1]["learning_rate"] - learning_rate(s)) / learning_rate(s) for s in range(STEPS))
            report.check(f"{ranks} ranks: learning rates", worst <= 1e-12, f"{worst:.1e}")
    report.finish()


if __name__ == "__main__":
    main()
