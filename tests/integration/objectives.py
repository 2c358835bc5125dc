"""Loss and gradients of every objective equal PyTorch, transformers, PEFT and bitsandbytes in fp32, on one rank and under layouts:
`hearth parity --save` makes one step from weights that transformers (and PEFT) saved and writes its mean gradients;
the same step is taken here on the same samples (DUMP_SAMPLES prints them). Formulas of the losses are written here
from their papers, in plain PyTorch.      objectives.py DUMP_SAMPLES [CASE...] | objectives.py --list"""
import json
import os
import random
import sys

import tokenizers
import torch
import transformers
from safetensors import safe_open
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid

from fixture import BASE_CONFIG, VOCAB_SIZE, Report, Workspace, device, hearth
import train_vs_pytorch
from train_vs_pytorch import batch_tensors, read_samples

BATCH = BASE_CONFIG["training.global_batch_size"]
# Ten times what two correct formulations of these models differ by in fp32 (1e-6 of each tensor's largest entry),
# and twice that where log-probabilities of whole sequences, some hundred nats, are subtracted.
TOLERANCE = 2e-5
LAYOUTS = {
    1: [[], []],
    2: [["tensor_model_parallel_size=2"], ["pipeline_model_parallel_size=2"], ["zero_stage=3"], ["context_parallel_size=2"]],
    8: [["tensor_model_parallel_size=2", "pipeline_model_parallel_size=2"],
        ["tensor_model_parallel_size=2", "pipeline_model_parallel_size=2", "pipeline_schedule=zb_h1", "zero_stage=2"]],
}
# For models with frozen weights, which zero_stage 3 splits: also where the head is on another rank than the embedding, and
# where weight gradients are computed apart.
SPLIT_LAYOUTS = {
    4: [["pipeline_model_parallel_size=2", "zero_stage=3"],
        ["pipeline_model_parallel_size=2", "pipeline_schedule=zb_h1", "zero_stage=3"]],
    8: [["tensor_model_parallel_size=2", "pipeline_model_parallel_size=2", "zero_stage=3"],
        ["tensor_model_parallel_size=2", "zero_stage=3"]],
}


def make_model(folder, seed, **changes):
    """With opinions: larger weights than a fresh model's."""
    return train_vs_pytorch.make_model(folder, seed, initializer_range=0.08, **changes)


def copy_tokenizer(workspace, folder):
    for name in os.listdir(workspace.path("tokenizer")):
        with open(workspace.path("tokenizer", name), "rb") as source, open(os.path.join(folder, name), "wb") as out:
            out.write(source.read())


def divergence(kind, student, teacher, temperature, beta):
    """Sum over the vocabulary, per row: Hinton et al. 2015, Gu et al. 2024, Agarwal et al. 2024."""
    s, t = log_softmax(student / temperature, -1), log_softmax(teacher / temperature, -1)
    if kind == "forward_kl":
        return (t.exp() * (t - s)).sum(-1)
    if kind == "reverse_kl":
        return (s.exp() * (s - t)).sum(-1)
    m = torch.log(beta * t.exp() + (1 - beta) * s.exp())
    return beta * (t.exp() * (t - m)).sum(-1) + (1 - beta) * (s.exp() * (s - m)).sum(-1)


def preference(kind, margin, beta, smoothing):
    """Per pair. `margin`: by how much more than the reference the policy prefers the chosen answer, in nats; for ipo between
    means over tokens."""
    if kind == "sigmoid":
        return -logsigmoid(beta * margin) * (1 - smoothing) - logsigmoid(-beta * margin) * smoothing
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return torch.relu(1 - beta * margin)


class Case:
    """One objective: its configuration, the layouts to try in pairs, and its loss in PyTorch."""
    config, layouts, layers = {}, LAYOUTS, 2

    def __init__(self, workspace, tool):
        self.workspace, self.tool = workspace, tool

    def prepare(self):
        """Saves the weights that hearth starts from; returns the model to train and what else the loss needs."""
        self.model = make_model(self.workspace.path("start"), 3, num_hidden_layers=self.layers)
        return {"model__init_from": "start", "model__num_hidden_layers": self.layers}

    def parameters(self):
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def logits(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).logits

    def loss(self, samples):
        ids, targets, keep, mask = batch_tensors(samples)
        return cross_entropy(self.logits(ids, mask)[keep], targets[keep]), {}


class Lora(Case):
    config = {"objective__lora_rank": 4, "objective__lora_alpha": 10}
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    rslora = False
    sizes = {}
    layouts = {**LAYOUTS, 4: SPLIT_LAYOUTS[4], 8: LAYOUTS[8] + SPLIT_LAYOUTS[8]}

    def prepare(self):
        import peft
        base = make_model(self.workspace.path("start"), 3, **self.sizes)
        self.change_base(base)
        base.name_or_path = "start"
        torch.manual_seed(5)
        self.model = peft.get_peft_model(base, peft.LoraConfig(
            r=4, lora_alpha=10, target_modules=self.modules, use_rslora=self.rslora, task_type="CAUSAL_LM"))
        with torch.no_grad():  # B away from 0, so that A has a gradient
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        self.model.save_pretrained(self.workspace.path("adapter"))
        return {"model__init_from": "adapter"}

    def change_base(self, base):
        """What training does to the weights that were saved."""

    def parameters(self):
        return {name.removeprefix("base_model.model.").replace(".default", ""): p
                for name, p in self.model.named_parameters() if p.requires_grad}


def dropout_mask(seed, name, p, rows, columns):
    """What kernels/dropout_mask.h drops, written out anew: 16 bits an element of a hash of (matrix, row, column)."""
    import xxhash

    def mixed(start, number):  # the finaliser of MurmurHash3 over a Weyl sequence
        x = (start + number * 0x9E3779B97F4A7C15) % 2**64
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> 33)) * factor % 2**64
        return x ^ (x >> 33)
    start, threshold, draws = mixed(seed, xxhash.xxh3_64_intdigest(name.encode())), round(p * 65536), (columns + 3) // 4
    kept = [[(mixed(start, row * draws + c // 4) >> 16 * (c % 4)) % 65536 >= threshold for c in range(columns)] for row in rows]
    return torch.tensor(kept).float() * 65536 / (65536 - threshold)


class LoraDropout(Lora):
    """PEFT without its own dropout: what reaches each A is masked in its place, with one mask for linears of one input."""
    p = 0.2
    config = {**Lora.config, "objective__lora_dropout": p}
    shares = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}

    def loss(self, samples):
        rows = range(len(samples) * len(samples[0]["loss_mask"]))
        masks, hooks = {}, []

        def masked(name, width):
            module = name.split(".")[-1]
            name = name.replace(module, self.shares.get(module, module)) + ".lora_A.weight"
            if name not in masks:
                masks[name] = dropout_mask(BASE_CONFIG["training.seed"], name, self.p, rows, width)
            return lambda _, inputs: (inputs[0] * masks[name].view_as(inputs[0]),)

        for name, module in self.model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                a = module.lora_A["default"]
                hooks.append(a.register_forward_pre_hook(masked(name, a.in_features)))
        result = super().loss(samples)
        for hook in hooks:
            hook.remove()
        return result


def through_nf4(weight):
    """Quantised twice and back, by bitsandbytes. The mean in fp64: a last bit of it moves an 8-bit code now and then. Those
    codes by its general kernel, which finds the nearest as those for GPUs do: the one of its CPU library looks up in cells,
    and takes a neighbour once in a thousand."""
    from bitsandbytes import functional
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    mean, dynamic = state.absmax.double().mean().float(), functional.create_dynamic_map(signed=True)
    nearest = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk
    codes8, groups = nearest(torch._C.DispatchKey.CompositeExplicitAutograd, state.absmax - mean, dynamic, 256)
    state.absmax = functional.dequantize_blockwise(codes8, absmax=groups, code=dynamic, blocksize=256) + mean
    return functional.dequantize_4bit(codes, state)


class Qlora(Lora):
    """Sizes of which tensor parallelism leaves whole blocks."""
    sizes = {"hidden_size": 128, "intermediate_size": 384}
    config = {**Lora.config, "objective__quantize_base": "nf4", "model__hidden_size": 128, "model__intermediate_size": 384}
    layouts = {**LAYOUTS, 8: [*LAYOUTS[8], ["tensor_model_parallel_size=2", "pipeline_model_parallel_size=2", "zero_stage=3"],
                              ["pipeline_model_parallel_size=2", "pipeline_schedule=zb_h1"]]}

    def change_base(self, base):
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if ".layers." in name and parameter.dim() == 2:
                    parameter.copy_(through_nf4(parameter))


class LoraQv(Lora):
    config = {**Lora.config, "objective__lora_target_modules": ["q_proj", "v_proj", "down_proj"], "objective__use_rslora": True}
    modules, rslora = ["q_proj", "v_proj", "down_proj"], True
    layouts = LAYOUTS


class Distill(Case):
    kind, temperature, alpha, beta, vocab = "forward_kl", 1.0, 0.5, 0.5, VOCAB_SIZE + 96
    teacher_layers, teacher_sizes = 3, {"hidden_size": 96, "tie_word_embeddings": False}
    layouts = Lora.layouts

    def prepare(self):
        self.config = {"objective__kind": "distill", "objective__teacher": "teacher", "objective__kd_alpha": self.alpha,
                       "objective__kd_divergence": self.kind, "objective__logit_kl_temperature": self.temperature,
                       "objective__jsd_beta": self.beta}
        # Other depth, width and padding of the vocabulary.
        self.teacher = make_model(self.workspace.path("teacher"), 4, vocab_size=self.vocab, num_hidden_layers=self.teacher_layers,
                                  **self.teacher_sizes).eval()
        copy_tokenizer(self.workspace, self.workspace.path("teacher"))
        self.tokens = tokenizers.Tokenizer.from_file(self.workspace.path("tokenizer/tokenizer.json")).get_vocab_size()
        return super().prepare()

    def divergence(self, student, teacher):
        return divergence(self.kind, student, teacher, self.temperature, self.beta)

    def loss(self, samples):
        ids, targets, keep, mask = batch_tensors(samples)
        student = self.logits(ids, mask)[keep]
        with torch.no_grad():
            teacher = self.teacher(input_ids=ids, attention_mask=mask).logits[keep]
        shared = min(student.shape[-1], teacher.shape[-1], self.tokens)  # padding of either vocabulary has no opinion
        ce = cross_entropy(student, targets[keep])
        kd = self.divergence(student[:, :shared], teacher[:, :shared]).mean()
        return (1 - self.alpha) * ce + self.alpha * self.temperature**2 * kd, {"ce loss": ce, "kd loss": kd}


# Students and, on the last ranks, teachers: alone, shared by two and by four, one for each, in every way of splitting
# either; another micro-batch.
TP, PP = "tensor_model_parallel_size=2", "pipeline_model_parallel_size=2"
TEACHER_LAYOUTS = {
    2: [["objective.teacher_ranks=1"], ["objective.teacher_ranks=1", "training.micro_batch_size=1"]],
    3: [["objective.teacher_ranks=1"], ["objective.teacher_ranks=1", "context_parallel_size=2"]],
    4: [["objective.teacher_ranks=2", f"objective.teacher_parallel.{TP}", TP],
        ["objective.teacher_ranks=2", f"objective.teacher_parallel.{PP}", PP],
        ["objective.teacher_ranks=2", "zero_stage=3"],
        ["objective.teacher_ranks=2", f"objective.teacher_parallel.{TP}", PP, "pipeline_schedule=zbv"]],
    6: [["objective.teacher_ranks=2"], ["objective.teacher_ranks=2", f"objective.teacher_parallel.{PP}", "context_parallel_size=2", TP]],
}


class DistillRanks(Distill):
    """The teacher on ranks of its own sends all that it thinks."""
    temperature, alpha, layouts, layers, top_k = 2.0, 0.6, TEACHER_LAYOUTS, 4, VOCAB_SIZE

    def prepare(self):
        changes = super().prepare()
        self.config["objective__teacher_top_k"] = self.top_k
        return changes


class DistillTopK(DistillRanks):
    """The seven most likely tokens, and all others as one further outcome (Peng et al. 2024)."""
    temperature, top_k = 1.5, 7

    def divergence(self, student, teacher):
        s, t = log_softmax(student / self.temperature, -1), log_softmax(teacher / self.temperature, -1)
        kept, ids = t.topk(self.top_k, -1)
        with_rest = lambda kept: torch.cat([kept, torch.log1p(-kept.exp().sum(-1, keepdim=True))], -1)  # noqa: E731
        s, t = with_rest(s.gather(-1, ids)), with_rest(kept)
        return (t.exp() * (t - s)).sum(-1)


class DistillReverse(Distill):
    kind, temperature, alpha = "reverse_kl", 2.0, 0.7
    layouts = LAYOUTS


class DistillJsd(Distill):
    # A teacher whose table is the smaller one.
    kind, temperature, alpha, beta = "jsd", 1.5, 1.0, 0.3
    layouts = LAYOUTS


class DistillStates(Distill):
    """Terms on layers of one stage and of different stages of a pipeline; a teacher as wide as the student."""
    pairs = [(1, 3, 0.7, "mse"), (2, 1, 0.4, "cosine"), (1, 1, 0.2, "cosine"), (2, 3, 0.1, "mse")]
    teacher_sizes = {}

    def prepare(self):
        changes = super().prepare()
        self.config["objective__intermediate"] = [{"student_layer": s, "teacher_layer": t, "weight": w, "loss": loss}
                                                  for s, t, w, loss in self.pairs]
        return changes

    def loss(self, samples):
        states, hooks = {}, []
        for model in (self.model, self.teacher):
            for number, layer in enumerate(model.model.layers, 1):
                hooks.append(layer.register_forward_hook(
                    lambda _, __, out, key=(model, number): states.__setitem__(key, out[0] if isinstance(out, tuple) else out)))
        loss, metrics = super().loss(samples)
        for hook in hooks:
            hook.remove()
        keep = batch_tensors(samples)[2]
        terms = 0
        for student_layer, teacher_layer, weight, kind in self.pairs:
            x, t = states[self.model, student_layer][keep], states[self.teacher, teacher_layer][keep]
            term = ((x - t) ** 2).mean(-1) if kind == "mse" else 1 - torch.nn.functional.cosine_similarity(x, t, dim=-1)
            terms = terms + weight * term.mean()
        return loss + terms, {**metrics, "intermediate loss": terms}


class DistillStatesRebuilt(DistillStates):
    """Layers that pass a second time in backward, and forward and backward of two micro-batches side by side."""
    layers, teacher_layers, pairs = 4, 5, [(1, 5, 0.7, "mse"), (4, 1, 0.4, "cosine"), (3, 2, 0.3, "mse")]
    rebuilt = {"recompute__granularity": "full", "recompute__num_layers": 1}
    layouts = {2: [[PP], [PP, "pipeline_schedule=dualpipev"]]}

    def prepare(self):
        changes = super().prepare()
        self.config.update(self.rebuilt)
        return changes


# A template in the manner of those that models carry, with the answers marked.
TEMPLATE = ("{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
            "{% endgeneration %}{% else %}{{ m.content + '\\n' }}{% endif %}{% endfor %}")


class Conversations:
    """Shards of conversations, packed to the length of a sample, in place of the text."""
    def prepare_shards(self, form):
        rng = random.Random(9)
        words = ["ka", "lo", "mi", "ren", "tu", "\u4e16\u754c", "sho", "ve"]
        say = lambda low, high: " ".join(rng.choices(words, k=rng.randint(low, high)))  # noqa: E731
        with open(self.workspace.path("talk.jsonl"), "w", encoding="utf-8") as out:
            for _ in range(60):
                prompt = [{"role": "user", "content": say(2, 6)}]
                if form == "messages":
                    record = {"messages": prompt + [{"role": "assistant", "content": say(2, 8)}] +
                              ([{"role": "user", "content": say(1, 3)}, {"role": "assistant", "content": say(1, 4)}] if rng.random() < 0.4 else [])}
                else:
                    answer = lambda: [{"role": "assistant", "content": say(1, 5)}]  # noqa: E731
                    record = {"prompt": prompt, "chosen": answer(), "rejected": answer()}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
        with open(self.workspace.path("template.jinja"), "w", encoding="utf-8") as out:
            out.write(TEMPLATE)
        hearth(["data", "prepare", "talk.jsonl", "--tokenizer", "tokenizer", "--chat-template", "template.jinja", "--format", form,
                "--pack-length", BASE_CONFIG["data.seq_length"], "--output", "talk", "--seed", 3], self.workspace.folder)
        return {"data__train": [{"path": "talk"}]}

    def samples(self):
        return read_samples(self.tool, self.workspace.path("talk"), BATCH)


class Sft(Conversations, Case):
    config = {"objective__kind": "sft"}

    def prepare(self):
        return {**super().prepare(), **self.prepare_shards("messages")}


class SftLora(Conversations, Lora):
    config = {"objective__kind": "sft", **Lora.config}
    layouts = LAYOUTS

    def prepare(self):
        return {**super().prepare(), **self.prepare_shards("messages")}


class DistillCache(Conversations, Distill):
    """The whole vocabulary kept: the same student as online."""
    layouts = LAYOUTS
    temperature, alpha = 2.0, 0.6

    def prepare(self):
        changes = {**super().prepare(), **self.prepare_shards("messages")}
        hearth(["distill", "cache", "teacher", "--data", "talk", "--output", "cache", "--top-k", VOCAB_SIZE, "--temperature",
                self.temperature, "--dtype", "fp32", "--device", device()], self.workspace.folder, ranks=2)
        del self.config["objective__teacher"]
        self.config["objective__teacher_cache"] = "cache"
        return changes


def counter_uniform(seed, stream, index):
    """A uniform number of base/rng.h: Philox4x32-10 (Salmon et al. 2011)."""
    low = 0xFFFFFFFF
    c, k = [index & low, index >> 32, stream & low, stream >> 32], [seed & low, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & low, (p >> 32) ^ c[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return ((c[1] << 32 | c[0]) >> 11) * 2.0**-53


class OnPolicy(Distill):
    """Agarwal et al. 2024: a share of the samples has the student's own answers, here its greedy ones, as transformers
    generates them. No cross-entropy on those; everything is divided by all tokens that count."""
    temperature, alpha, share = 1.5, 0.6, 0.5
    CHOICE = 0xA3B189ACF7363AC4  # XXH3-64 of "on_policy.choice"

    def prepare(self):
        changes = super().prepare()
        self.config.update(objective__on_policy_share=self.share, objective__on_policy_temperature=0)
        return changes

    def written(self, sample, begin, stop):
        """Rewrites the document of positions [begin, stop): the first run of trained tokens; of plain text the second half."""
        trained = [t + 1 for t in range(begin, stop) if sample["loss_mask"][t]]
        first = trained[0]
        last = next(t for t in range(first, stop + 2) if t not in trained)
        if first == begin + 1:
            first = begin + (last - begin + 1) // 2
        prompt = torch.tensor([sample["tokens"][begin:first]])
        text = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=last - first,
                                   eos_token_id=0, pad_token_id=0, suppress_tokens=list(range(self.tokens, VOCAB_SIZE)) or None)
        text = text[0, prompt.shape[1]:].tolist()
        sample["tokens"][first:first + len(text)] = text
        sample["loss_mask"][begin:stop] = [1 if first <= t + 1 < first + len(text) else 0 for t in range(begin, stop)]

    def loss(self, samples):
        own = torch.tensor([counter_uniform(BASE_CONFIG["training.seed"], self.CHOICE, i) < self.share for i in range(len(samples))])
        texts = 0
        for sample in (s for s, mine in zip(samples, own) if mine):
            borders = [*sample["document_starts"], len(sample["loss_mask"])]
            for begin, stop in zip(borders, borders[1:]):
                if any(sample["loss_mask"][begin:stop]):
                    self.written(sample, begin, stop)
                    texts += 1
        ids, targets, keep, mask = batch_tensors(samples)
        student = self.logits(ids, mask)
        with torch.no_grad():
            teacher = self.teacher(input_ids=ids, attention_mask=mask).logits
        shared, count = min(student.shape[-1], teacher.shape[-1], self.tokens), keep.sum()
        data, mine = keep & ~own[:, None], keep & own[:, None]
        ce = cross_entropy(student[data], targets[data], reduction="sum")
        kd = divergence(self.kind, student[keep][:, :shared], teacher[keep][:, :shared], self.temperature, self.beta).sum()
        return ((1 - self.alpha) * ce + self.alpha * self.temperature**2 * kd) / count, {
            "ce loss": ce / max(int(data.sum()), 1), "kd loss": kd / count, "on-policy share": mine.sum() / count,
            "on-policy length": mine.sum() / max(texts, 1)}


class OnPolicyTalk(Conversations, OnPolicy):
    kind, share = "reverse_kl", 0.6

    def prepare(self):
        return {**super().prepare(), **self.prepare_shards("messages")}


class Dpo(Conversations, Case):
    """Rafailov et al. 2023, eq. 7; Azar et al. 2024 (means over tokens, as TRL takes them); Zhao et al. 2023."""
    config = {"objective__kind": "dpo"}
    kind, beta, smoothing = "sigmoid", 0.1, 0.0
    layouts = {**LAYOUTS, 8: LAYOUTS[8] + SPLIT_LAYOUTS[8]}

    def prepare(self):
        return {**super().prepare(), **self.prepare_shards("preference"), "objective__pref_loss": self.kind,
                "objective__pref_beta": self.beta, "objective__pref_label_smoothing": self.smoothing}

    def reference_logits(self, ids, mask):
        return self.logits(ids, mask).detach()  # the policy is where it began

    def loss(self, samples):
        ids, targets, keep, mask = batch_tensors(samples)
        policy, reference = self.logits(ids, mask), self.reference_logits(ids, mask)
        take = lambda logits: log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]  # noqa: E731
        policy, reference = take(policy), take(reference)
        gains, logps = [], []
        for row, sample in enumerate(samples):
            borders = [*sample["document_starts"], len(sample["loss_mask"])]
            for begin, end in zip(borders, borders[1:]):
                trained = keep[row, begin:end]
                length = trained.sum() if self.kind == "ipo" else 1.0
                logps.append(policy[row, begin:end][trained].sum())
                gains.append((logps[-1] - reference[row, begin:end][trained].sum()) / length)
        gains, logps = torch.stack(gains).view(-1, 2), torch.stack(logps).view(-1, 2)
        margin = gains[:, 0] - gains[:, 1]
        losses = preference(self.kind, margin, self.beta, self.smoothing)
        rewards = self.beta * gains
        return losses.mean(), {"rewards/chosen": rewards[:, 0].mean(), "rewards/rejected": rewards[:, 1].mean(),
                               "rewards/accuracies": (margin > 0).float().mean(), "logps/chosen": logps[:, 0].mean(),
                               "logps/rejected": logps[:, 1].mean()}


class DpoLora(Dpo, Lora):
    """Adapters that have moved already: the reference is the model without them."""
    layouts = LAYOUTS
    config = {**Dpo.config, **Lora.config}
    smoothing = 0.1

    def reference_logits(self, ids, mask):
        with torch.no_grad(), self.model.disable_adapter():
            return self.model(input_ids=ids, attention_mask=mask).logits


class DpoIpo(DpoLora):
    kind, beta, smoothing = "ipo", 0.5, 0.0


class DpoHinge(DpoLora):
    kind, beta, smoothing = "hinge", 0.2, 0.0


CASES = {"pretrain": Case, "lora": Lora, "qlora": Qlora, "lora_qv": LoraQv, "lora_dropout": LoraDropout, "distill": Distill,
         "distill_reverse": DistillReverse, "distill_jsd": DistillJsd, "distill_states": DistillStates,
         "distill_states_rebuilt": DistillStatesRebuilt, "distill_cache": DistillCache, "distill_ranks": DistillRanks,
         "distill_top_k": DistillTopK, "on_policy": OnPolicy, "on_policy_talk": OnPolicyTalk, "sft": Sft, "sft_lora": SftLora,
         "dpo": Dpo, "dpo_lora": DpoLora,
         "dpo_ipo": DpoIpo, "dpo_hinge": DpoHinge}


def compare(report, name, saved, case, want_loss, want_metrics):
    with safe_open(saved, "pt") as file:
        metadata, got = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    error = abs(float(metadata["loss"]) - want_loss) / abs(want_loss)
    report.check(f"{name}: loss", error <= TOLERANCE, f"{float(metadata['loss']):.7f}, want {want_loss:.7f}, {error:.1e}")
    for metric, want in want_metrics.items():
        error = abs(float(metadata[metric]) - want) / max(abs(want), 1e-6)
        report.check(f"{name}: {metric}", error <= 10 * TOLERANCE, f"{float(metadata[metric]):.6f}, want {want:.6f}")
    want = {key: p.grad for key, p in case.parameters().items()}
    report.check(f"{name}: the same parameters", got.keys() == want.keys(), sorted(got.keys() ^ want.keys())[:4] or len(got))
    worst = max(((float((got[key] - want[key]).abs().max() / want[key].abs().max()), key) for key in got.keys() & want.keys()),
                default=(float("nan"), ""))
    finite = all(bool(torch.isfinite(value).all()) for value in got.values())
    report.check(f"{name}: gradients", finite and worst[0] <= TOLERANCE, f"{worst[0]:.1e} of the largest, in {worst[1]}")


def run_case(report, name, case, workspace):
    changes = {**case.prepare(), **case.config}
    copy_tokenizer(workspace, workspace.path("start"))
    workspace.write_config(**{**changes, "data__validation": []})
    samples = case.samples() if hasattr(case, "samples") else read_samples(case.tool, workspace.path("shards/train"), BATCH)
    loss, metrics = case.loss(samples)
    loss.backward()
    metrics = {metric: float(value.detach()) for metric, value in metrics.items()}
    for ranks, sides in case.layouts.items():
        for a, b in zip(sides[::2], sides[1::2]):
            in_section = lambda key: key if "." in key.split("=")[0] else f"parallel.{key}"  # noqa: E731
            words = [word for flag, keys in (("--a", a), ("--b", b)) for key in keys for word in (flag, in_section(key))]
            hearth(["parity", "config.yaml", "--device", device(), "--save", "saved", "--tolerance", TOLERANCE, *words],
                   workspace.folder, ranks=ranks, timeout=240)
            for side, keys in (("a", a), ("b", b)):
                compare(report, f"{name}, {ranks} ranks {' '.join(keys)}".strip(), workspace.path("saved", f"{side}.safetensors"),
                        case, float(loss.detach()), metrics)


def main():
    if sys.argv[1:] == ["--list"]:
        print(*CASES)
        return
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    report = Report()
    for name in sys.argv[2:] or CASES:
        with Workspace() as workspace:
            run_case(report, name, CASES[name](workspace, sys.argv[1]), workspace)
    report.finish()


if __name__ == "__main__":
    main()
